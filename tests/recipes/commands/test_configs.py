"""Every YAML file fits its recipe's dataclass, sections included; an unknown key is refused with the nearest one."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from align.errors import UserError
from recipes.cli import COMMANDS
from recipes.commands import finetune
from recipes.config import build, option, parse, read_yaml

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
MODULES = {module.removeprefix("recipes.commands."): module for module, _ in COMMANDS.values()}


def recipe_of(file: Path) -> Any:
    """finetune_dpo.yaml -> recipes.commands.finetune: the longest recipe name that the file's name starts with.

    chat_sft.yaml is sft's, chat_METHOD.yaml finetune's, another without a method chat's own.
    """
    stem = file.stem.removeprefix("chat_")
    names = [name for name in MODULES if stem == name or stem.startswith(name + "_")]
    if stem != file.stem and not names:
        names = ["finetune" if "method" in read_yaml(file) else "chat"]
    assert names, f"{file.name} starts with no recipe's name"
    return importlib.import_module(MODULES[max(names, key=len)])


def filled(recipe: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The YAML's values, and something for what only the user knows (`--model`, `--data`)."""
    needed = [
        f
        for f in dataclasses.fields(recipe.Config)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return {**{f.name: ["x"] if "tuple" in str(f.type) else "x" for f in needed}, **values}


def test_every_stage_has_a_config() -> None:
    assert {recipe_of(file).__name__ for file in FILES} >= {
        f"recipes.commands.{name}" for name in ("pretrain", "sft", "reward_model", "finetune", "evaluate")
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_yaml_fits_its_dataclass(file: Path) -> None:
    recipe = recipe_of(file)
    config = build(recipe.Config, filled(recipe, read_yaml(file)), where=file.name)
    if recipe is finetune:
        assert dataclasses.is_dataclass(finetune.settings_of(config, where=file.name))
    elif recipe.Config.__module__.startswith("recipes.commands"):
        for name, value in read_yaml(file).items():
            if isinstance(value, dict):
                section = getattr(config, name)
                assert dataclasses.is_dataclass(section), f"section {name} is not checked against a dataclass"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_unknown_key_is_refused(file: Path) -> None:
    recipe = recipe_of(file)
    values = filled(recipe, read_yaml(file))
    nearest = "seed" if "seed" in {field.name for field in dataclasses.fields(recipe.Config)} else ""
    with pytest.raises(UserError, match=f"unknown key 'sed'; did you mean {nearest}"):
        build(recipe.Config, {**values, "sed": 1}, where=file.name)
    for name, section in values.items():
        if isinstance(section, dict) and recipe.Config.__module__.startswith("recipes.commands"):
            with pytest.raises(UserError, match=f"{name}: unknown key 'nonsense'"):
                config = build(recipe.Config, {**values, name: {**section, "nonsense": 1}}, where=file.name)
                finetune.settings_of(config, where=file.name)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A config with one field of every sort that the recipes use."""

    name: str = option(help="a name")
    steps: int | None = option(None, help="a number")
    share: float = option(0.5, help="a share of 100 %")
    loud: bool = option(False, help="a switch")
    parts: tuple[str, ...] = option((), help="several")
    inner: Inner = field(default_factory=Inner)
    extra: dict[str, Any] = option({}, help="a section")


def read(*argv: str) -> Outer:
    return parse(Outer, list(argv), program="align test", about="")[0]


def test_flags_win_over_yaml_which_wins_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "test.yaml"
    file.write_text("name: yaml\nsteps: 3\nextra: {a: 1, b: 2}\n")
    assert read("--config", str(file)) == Outer(name="yaml", steps=3, extra={"a": 1, "b": 2})
    found = read("--config", str(file), "--steps", "4", "--set", "extra.a=5", "--set", "inner.rate=1e-3", "--loud")
    assert found == Outer(name="yaml", steps=4, loud=True, extra={"a": 5, "b": 2}, inner=Inner(rate=1e-3))


def test_flags_are_typed() -> None:
    found = read("--name", "7", "--share", "1", "--parts", "a=1", "-0.5,1.5", "--parts", "b")
    assert (found.name, found.share, found.parts) == ("7", 1.0, ("a=1", "-0.5,1.5", "b"))
    assert isinstance(found.share, float)
    assert read("--name", "x", "--parts", "-0.5,1.5").parts == ("-0.5,1.5",)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "align test: name is missing; give --name or set it in the YAML file"),
        (["--name", "x", "--stepz", "3"], "align test: unknown option --stepz; did you mean --steps?"),
        (["--name", "x", "--steps", "many"], "align test: steps is 'many'; give a value of type int"),
        (["--name", "x", "--steps", "2.5"], "align test: steps is 2.5; give a value of type int"),
        (["--name", "x", "--set", "inner.kind=c"], "align test: inner: kind is 'c'; choose from a, b"),
        (["--name", "x", "--set", "inner.rat=1"], "align test: inner: unknown key 'rat'; did you mean rate?"),
        (["--name", "x", "--set", "inner"], "align test: --set inner has no value; write --set section.key=value"),
        (["--name", "x", "--set", "extra=3"], "align test: extra is 3; give a section of keys"),
    ],
)
def test_mistakes_name_the_place_and_the_mend(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(*argv)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [1\n", r"line 2 is not valid YAML"),
        ("just words\n", "holds str, not keys and values"),
        ("name: x\nstep: 3\n", "unknown key 'step'; did you mean steps"),
        ("name: x\nloud: 1\n", "loud is 1; give a value of type bool"),
        ("name: x\nsteps: true\n", "steps is True; give a value of type int"),
        ("name: x\nparts: one\n", "parts is 'one'; give a list"),
    ],
)
def test_a_yaml_file_with_a_mistake_is_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "test.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read("--config", str(file))
    assert str(file) in str(caught.value)


def test_a_missing_yaml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.yaml cannot be read .No such file or directory."):
        read("--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps=2001-99-99", "--set steps holds a value that cannot be read"),
        ("steps=!!timestamp abc", "--set steps holds a value that cannot be read"),
        ("share=!!float abc", "--set share holds a value that cannot be read"),
        ("share=1" + "0" * 400, "share is 1000"),
        ("steps=1" + "0" * 30, "steps is 1000000000000000000000000000000; give a whole number below 2..63"),
        ("steps=" + "9" * 5000, "--set steps holds a value that cannot be read"),
        ("steps=0x" + "f" * 9000, "steps is a int too long to show"),
        ("steps=" + "[" * 5000, "nested too deeply"),
        ("steps=" + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("steps=!!python/object/apply:os.system ['x']", "is not valid YAML"),
        ("inner=&a {rate: *a}", r"rate is \{"),
        ("parts=&a [*a]", r"parts\[0\] is \["),
        ("inner={[1, 2]: 3}", "is not valid YAML"),
        ("inner={null: 2}", "unknown key None"),
        ("inner." + "k" * 100_000 + "=1", "unknown key 'kkk"),
        ("name.x=1", "name is no section of keys, but 'x'"),
    ],
    ids=lambda text: text[:24],
)
def test_what_the_yaml_loader_raises_is_one_short_line(assignment: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read("--name", "x", "--set", assignment)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("steps: 2001-99-99\n", "cannot be read"),
        ("steps: !!timestamp abc\n", "cannot be read"),
        ("steps: " + "9" * 5000 + "\n", "cannot be read"),
        ("name: " + "[" * 20_000, "nested too deeply"),
        ("name: a\n---\nname: b\n", "line 2 is not valid YAML"),
        ("inner: null\nname: x\n", "inner is None; give a section of keys"),
    ],
)
def test_a_file_with_such_a_value_is_named(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read("--config", str(file))
    assert "odd.yaml" in str(caught.value) and len(str(caught.value)) < 500


def test_aliases_do_not_explode_in_the_message(tmp_path: Path) -> None:
    """Eight levels of ten aliases: a hundred million values if it were written out."""
    lists = ["v0: &v0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * 10)}]" for i in range(1, 9)]
    file = tmp_path / "bomb.yaml"
    file.write_text(f"name: x\nshare: {{{', '.join(lists)}}}\n")
    with pytest.raises(UserError, match="share is ") as caught:
        read("--config", str(file))
    assert len(str(caught.value)) < 20_000


def test_an_empty_flag_is_refused() -> None:
    with pytest.raises(UserError, match="--steps is empty; give a value or leave it out"):
        read("--name", "x", "--steps", "")
