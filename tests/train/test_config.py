"""Strict configs, durations, and the mini-language of choices."""

import pytest
from ml_collections import ConfigDict

import models
from configs.base import arguments
from models.errors import UserError, choice_error
from train.setup import config, names, spec


def test_reader_refuses_unknown_and_unread_keys():
    reader = config.Reader(ConfigDict({"a": 1, "section": {"rate": 2, "rte": 3}}))
    assert reader.a == 1 and reader.section.rate == 2
    with pytest.raises(UserError, match=r"unknown config key 'section.rat'; did you mean 'section.rate'"):
        _ = reader.section.rat
    with pytest.raises(UserError, match=r"'section.rte' is read by nothing; did you mean 'section.rate'"):
        reader.check_all_read()
    assert reader.section.to_dict() == {"rate": 2, "rte": 3}
    reader.check_all_read()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7), ("1 step", 1), ("90 epochs", 9000), ("0.5 epochs", 50), ("1.28e3 examples", 128), ("25%", 10),
        ("0 steps", 0),
    ],
)  # fmt: skip
def test_durations(text, steps):
    assert config.steps(text, batch_size=10, examples=1000, total=40) == steps


@pytest.mark.parametrize("text", ["7", "steps", "7 stepz", "-1 steps", "inf epochs", "7 steps more", "", "nan steps"])
def test_durations_that_cannot_be_read(text):
    with pytest.raises(UserError, match="write 'N steps', 'N epochs', 'N examples', or 'N%'".replace(", or", ",")):
        config.steps(text, batch_size=10, examples=1000, total=40)
    with pytest.raises(UserError):
        config.steps("10%", batch_size=10, examples=1000)  # percent of an unknown total


def test_load_finds_the_projects_configs_from_anywhere_and_says_what_they_refuse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("configs/digits.py:resnet8,norm=group").model.norm == "group"
    with pytest.raises(UserError, match=r"digits.py:depth=3: unknown config argument 'depth=3'; allowed: model="):
        config.load("configs/digits.py:depth=3")


def test_difference_names_every_changed_key():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 3}}
    assert config.difference(old, new) == ["b.c: 2 -> 4", "b.d: 3 -> (absent)", "b.e: (absent) -> 3"]
    assert config.difference(old, old) == []


def test_calls():
    assert spec.parse("augment", "crop(4)|flip | mixup(alpha=0.2)") == (
        spec.Call("crop", (4,)),
        spec.Call("flip"),
        spec.Call("mixup", (), {"alpha": 0.2}),
    )
    assert spec.parse("augment", "crop(4, reflect)") == (spec.Call("crop", (4, "reflect")),)
    assert spec.parse("pruning", "a(what='b|c')|d") == (spec.Call("a", (), {"what": "b|c"}), spec.Call("d"))
    assert spec.parse("augment", "") == ()
    table = {"sgd": lambda rate, momentum=0.9, nesterov=False: (rate, momentum, nesterov)}
    assert spec.resolve_one("optimizer", "sgd(nesterov=True)", table, 0.1) == (0.1, 0.9, True)
    with pytest.raises(UserError, match="unknown optimizer 'sgf'; did you mean 'sgd'"):
        spec.resolve_one("optimizer", "sgf", table, 0.1)
    with pytest.raises(UserError, match=r"optimizer sgd: .*'momentun'; usage: sgd\(momentum=0.9, nesterov=False\)"):
        spec.resolve_one("optimizer", "sgd(momentun=0.5)", table, 0.1)
    with pytest.raises(UserError, match="exactly one"):
        spec.resolve_one("optimizer", "sgd|sgd", table, 0.1)


@pytest.mark.parametrize("text", ["crop(", "crop(x.y)", "__import__('os').system('true')", "a.b(1)", "crop(*[1])", "1"])
def test_calls_that_cannot_be_read(text):
    with pytest.raises(UserError, match="cannot read augment"):
        spec.parse("augment", text)


def test_config_arguments():
    a = arguments("resnet56,width=2,fast=true", model="resnet20", width=1, fast=False)
    assert (a.model, a.width, a.fast) == ("resnet56", 2, True)
    for text in ("resnet20,depth=3", "resnet20,resnet32"):
        with pytest.raises(ValueError, match="unknown config argument"):
            arguments(text, model="resnet20")
    with pytest.raises(ValueError, match="must be of type int"):
        arguments("width=wide", width=1)


def test_every_alias_means_a_key_and_is_none():
    keys = config.keys()
    for alias, meant in names.ALIASES.items():
        assert meant.partition("=")[0] in keys and alias not in keys, alias


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.lr", "'optimizer.learning_rate'"),
        ("lr", "'optimizer.learning_rate'"),
        ("wd", "'optimizer.weight_decay'"),
        ("data.bs", "'batch_size'"),
        ("batch", "'batch_size'"),
        ("epochs", "duration='40 epochs'"),
        ("arch", "'model.name'"),
        ("learning_rate", "'optimizer.learning_rate'"),  # in the wrong section
        ("model.image-size", "'data.image_size'"),
        ("optimizer.learing_rate", "'optimizer.learning_rate'"),
    ],
)
def test_keys_of_other_projects_are_known(key, meant):
    assert names.hint(key, config.keys()) == f"; did you mean {meant}?"
    assert names.hint("qqqq", config.keys()) == ""


def test_lists_of_choices_name_files_where_they_are_accepted():
    for make in (
        lambda: models.create("resnet8", norm="grop"),
        lambda: models.create("resnet8", act="rellu"),
        lambda: models.create("resnet8", init="mrsa"),
        lambda: models.create("resnet8", conv="cnv"),
        lambda: models.create("resnet5"),
        lambda: spec.resolve_one("task.name", "clasify", {"classify": None}),
    ):
        with pytest.raises(UserError, match=r", FILE\.py:NAME$"):
            make()
    with pytest.raises(UserError, match="allowed: cls, mean$"):
        raise choice_error("pool", "max", ("cls", "mean"))
