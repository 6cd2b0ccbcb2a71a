"""The examples in the docstrings of the models: every public class has one, and each runs as written."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

from dlrrec_torchrec import models

MODULES = [f"{models.__name__}.{module.name}" for module in pkgutil.iter_modules(models.__path__)]


def public_classes(name):
    module = importlib.import_module(name)
    return [
        class_
        for class_name, class_ in vars(module).items()
        if inspect.isclass(class_) and class_.__module__ == name and not class_name.startswith("_")
    ]


CLASSES = [class_ for name in MODULES for class_ in public_classes(name)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    torch.manual_seed(0)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


@pytest.mark.parametrize("class_", CLASSES, ids=lambda class_: class_.__name__)
def test_every_public_class_has_an_example(class_):
    """`Example::` as in TorchRec's docstrings, in which the class itself is used."""
    text = inspect.cleandoc(class_.__doc__ or "")
    examples = doctest.DocTestParser().get_examples(text)
    assert "Example::" in text
    assert any(f"{class_.__name__}(" in example.source for example in examples)


def test_all_classes_are_looked_at():
    names = {class_.__name__ for class_ in CLASSES}
    assert {"DLRREC", "TrainWrapper", "Tower", "MaskedBatchNorm", "ManagedTables", "OverArch"} <= names
