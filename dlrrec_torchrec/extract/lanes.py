"""Vectors of sixteen numbers in code that numba compiles, and what can be done with them.

One register of AVX-512, two of AVX. With loops over such vectors no compiler decides which sums are made side
by side and which products are fused. Nothing checks an array's bounds; arrays are C-ordered. Numba's disk
cache does not see a change of this file: change `vector_loops.py`, which uses it, too.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

_LANES = 16
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)
_WHOLE = ir.VectorType(ir.IntType(32), _LANES)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)
_FIRST = ir.Constant(_WHOLE, [0] * _LANES)
LOWEST = -1e30


class _Vector(types.Type):
    """Sixteen numbers in single precision."""

    def __init__(self) -> None:
        super().__init__("f32x16")


_vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


def _place(context, builder, signature, arguments):
    """The address of array[index]."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])


def _repeated(builder, number):
    only = builder.insert_element(_UNDEFINED, number, ir.IntType(32)(0))
    return builder.shuffle_vector(only, _UNDEFINED, _FIRST)


def _call(builder, name, arguments):
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def load(typing_context, array, index):
    """Sixteen numbers from array[index] on, of the array as it lies in memory."""

    def generate(context, builder, signature, arguments):
        place = _place(context, builder, signature, arguments)
        return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4)

    return _vector(array, types.intp), generate


@intrinsic
def store(typing_context, array, index, vector):
    def generate(context, builder, signature, arguments):
        place = _place(context, builder, signature, arguments)
        builder.store(arguments[2], builder.bitcast(place, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), generate


@intrinsic
def move(typing_context, target, to, source, at):
    """target[to] = source[at]"""

    def generate(context, builder, signature, arguments):
        number = builder.load(_place(context, builder, types.void(*signature.args[2:]), arguments[2:]))
        builder.store(number, _place(context, builder, signature, arguments))
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate


@intrinsic
def spread(typing_context, array, index):
    """Sixteen times array[index]."""

    def generate(context, builder, signature, arguments):
        return _repeated(builder, builder.load(_place(context, builder, signature, arguments)))

    return _vector(array, types.intp), generate


@intrinsic
def repeat(typing_context, number):
    """Sixteen times the number."""
    return _vector(types.float32), lambda context, builder, signature, arguments: _repeated(
        builder, arguments[0]
    )


def _pairwise(emit):
    @intrinsic
    def operation(typing_context, x, y):
        return _vector(_vector, _vector), lambda context, builder, signature, arguments: emit(
            builder, *arguments
        )

    return operation


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


add = _pairwise(lambda builder, x, y: builder.fadd(x, y))
subtract = _pairwise(lambda builder, x, y: builder.fsub(x, y))
times = _pairwise(lambda builder, x, y: builder.fmul(x, y))
over = _pairwise(lambda builder, x, y: builder.fdiv(x, y))
larger = _pairwise(_larger)
smaller = _pairwise(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y))


@intrinsic
def fused(typing_context, x, y, z):
    """x y + z, rounded once."""
    return _vector(_vector, _vector, _vector), lambda context, builder, signature, arguments: _call(
        builder, "llvm.fma.v16f32", arguments
    )


@intrinsic
def nearest(typing_context, x):
    """The whole numbers next to x."""
    return _vector(_vector), lambda context, builder, signature, arguments: _call(
        builder, "llvm.rint.v16f32", arguments
    )


@intrinsic
def power_of_two(typing_context, x):
    """2^x of whole numbers from -126 to 127: the exponent's bits."""

    def generate(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], _WHOLE)
        biased = builder.add(whole, ir.Constant(_WHOLE, [127] * _LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(_WHOLE, [23] * _LANES)), _VECTOR)

    return _vector(_vector), generate


def _folded(emit):
    @intrinsic
    def operation(typing_context, x):
        def generate(context, builder, signature, arguments):
            vector = arguments[0]
            for step in (8, 4, 2, 1):
                turned = ir.Constant(_WHOLE, [(i + step) % _LANES for i in range(_LANES)])
                vector = emit(builder, vector, builder.shuffle_vector(vector, _UNDEFINED, turned))
            return builder.extract_element(vector, ir.IntType(32)(0))

        return types.float32(_vector), generate

    return operation


total_of = _folded(lambda builder, x, y: builder.fadd(x, y))
largest_of = _folded(_larger)


@intrinsic
def only_first(typing_context, x, count):
    """The first `count` of the sixteen; -1e30 in place of the others."""

    def generate(context, builder, signature, arguments):
        number = builder.trunc(arguments[1], ir.IntType(32))
        only = builder.insert_element(ir.Constant(_WHOLE, ir.Undefined), number, ir.IntType(32)(0))
        counts = builder.shuffle_vector(only, ir.Constant(_WHOLE, ir.Undefined), _FIRST)
        inside = builder.icmp_signed("<", ir.Constant(_WHOLE, list(range(_LANES))), counts)
        lowest = ir.Constant(_VECTOR, [LOWEST] * _LANES)
        return builder.select(inside, arguments[0], lowest)

    return _vector(_vector, types.intp), generate
