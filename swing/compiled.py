"""How the package compiles: numba without the GIL, cached on disk where that is possible."""

from __future__ import annotations

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from swing.config import SwingError


def compiled(function):
    """`numba.njit`, with the disk cache unless no folder for it can be written (a read-only install)."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # numba found no folder it may write to
        return numba.njit(function, **options)


def check_compiler() -> None:
    """Raise SwingError where numba has been told not to compile: `prefetch` is no plain Python."""
    if numba.config.DISABLE_JIT:
        raise SwingError(
            "NUMBA_DISABLE_JIT (or disable_jit in .numba_config.yaml) is set, and SWING's loops are no plain "
            "Python: unset it; `swing.reference` is SWING for a debugger"
        )


@intrinsic
def prefetch(typing_context, array, index):
    """Load the cache line of array[index] before its use."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        line = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [line, flag(0), flag(3), flag(1)])  # for reading, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
