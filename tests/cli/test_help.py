"""Help pages: panels, values of choices, and examples that are valid command lines."""

from __future__ import annotations

import functools
import shlex
from typing import Any, get_args

import pytest
import typer.main

from edgetl.cli.app import COMMANDS, app, command_name
from edgetl.cli.examples import EXAMPLES
from edgetl.cli.help import choices
from edgetl.core.options import COMMON
from edgetl.train.config.options import Strategy
from tests.command import edgetl_in_one_process

GROUP: Any = typer.main.get_command(app)
NAMES = list(GROUP.commands)


@functools.cache
def _pages() -> dict[str, str]:
    """Return every help page by the name of its command. The main page has no name."""
    names = ["", *NAMES]
    printed = edgetl_in_one_process([[*filter(None, [name]), "--help"] for name in names])
    assert all((item.code, item.stderr) == (0, "") for item in printed)
    return {name: item.stdout for name, item in zip(names, printed, strict=True)}


def _page(name: str = "") -> str:
    return _pages()[name]


def _panels(page: str) -> dict[str, str]:
    """Return the text of each panel by its title."""
    found = {}
    for part in page.split("╭─ ")[1:]:
        title, _, rest = part.partition(" ─")
        lines = rest.split("╰─")[0].splitlines()[1:]
        found[title] = " ".join(" ".join(lines).replace("│", " ").split())
    return found


def test_the_main_page_groups_the_commands_and_describes_each_in_one_sentence() -> None:
    panels = _panels(_page())
    assert list(panels) == ["Data", "Train", "Export", "Run", "Device", "Other", "Options"]
    for title, commands in COMMANDS.items():
        for command in commands:
            assert f" {command_name(command)} " in f" {panels[title]}"
    for name in NAMES:
        summary = GROUP.commands[name].help.split("\n\n")[0]
        assert summary.endswith(".") and summary.count(". ") == 0 and len(summary) <= 90, summary


@pytest.mark.parametrize("name", ["predict", "evaluate", "serve"])
def test_the_default_variant_is_the_first_with_an_installed_engine(name: str) -> None:
    assert "the first with an installed engine." in " ".join(_page(name).replace("│", " ").split())


def test_the_help_of_bench_defines_the_percentiles() -> None:
    assert "The 90th and 99th percentiles are of whole." in " ".join(_page("bench").split())


def test_the_help_of_train_states_the_rounding_of_the_splits() -> None:
    panel = " ".join(_panels(_page("train")).values())
    assert "At least 1 image of 2 or more." in panel and "At least 1 image of 3 or more." in panel


def test_the_main_page_describes_the_product_for_a_device() -> None:
    first = " ".join(_page().split("╭")[0].split())
    assert "run it on an edge device" in first and "edge bundle" not in first


@pytest.mark.parametrize("name", ["train", "plan", "export", "fit", "rank", "serve"])
def test_a_long_page_starts_with_the_common_options_and_ends_with_the_output_options(name: str) -> None:
    titles = list(_panels(_page(name)))
    assert titles[:2] == ["Arguments", COMMON] and titles[-1] == "Output" and len(titles) > 4


def test_a_short_page_has_one_panel_of_options() -> None:
    assert list(_panels(_page("inspect"))) == ["Arguments", "Options"]


def test_rare_options_of_training_follow_the_common_ones() -> None:
    page = _page("train")
    order = [page.index(f"{option} ") for option in ("--out", "--strategy", "--val", "--lr", "--lwf", "--cache-gb", "--devices", "--json")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", NAMES)
def test_every_page_fits_eighty_columns_and_has_help_for_every_option(name: str) -> None:
    page = _page(name)
    assert max(map(len, page.splitlines())) <= 80 and "…" not in page
    for item in GROUP.commands[name].params:
        assert item.help and item.help.endswith("."), item.name


@pytest.mark.parametrize("name", NAMES)
def test_every_option_with_fixed_values_lists_them(name: str) -> None:
    page = " ".join(_page(name).replace("│", " ").split())
    for item in GROUP.commands[name].params:
        if known := choices(item):
            assert f"values: {', '.join(known)}" in page, item.name


def test_the_choices_of_an_option_are_those_of_the_configuration() -> None:
    found = {item.name: choices(item) for item in GROUP.commands["train"].params}
    assert found["strategy"] == get_args(Strategy) and found["epochs"] == ()


def test_a_wrong_choice_is_a_usage_error_that_lists_the_values() -> None:
    options = [item for item in GROUP.commands["train"].params if choices(item)]
    assert len(options) > 10
    printed = edgetl_in_one_process([["train", "images", "--out", "run", item.opts[0], "magic"] for item in options])
    for item, done in zip(options, printed, strict=True):
        assert done.code == 2 and "Value error" not in done.words
        assert f"'{item.opts[0]}': 'magic' is not one of: {', '.join(choices(item))}." in done.words


def test_a_misspelled_word_is_an_error_that_names_the_nearest() -> None:
    cases = {
        "Did you mean 'partial'?": ["train", "images", "--strategy", "parital"],
        "Did you mean 'train'": ["trian", "images"],
        "--strategy": ["train", "images", "--stratgy", "full"],
    }
    for suggestion, done in zip(cases, edgetl_in_one_process(list(cases.values())), strict=True):
        assert done.code == 2 and suggestion in done.words


def test_every_command_has_two_examples() -> None:
    assert set(EXAMPLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_valid_commands_and_are_printed_on_one_line_each(name: str) -> None:
    lines = _page(name).splitlines()
    for purpose, example in EXAMPLES[name]:
        assert f"  {purpose}:" in lines and f"    {example}" in lines and len(example) <= 76
        program, *words = shlex.split(example)
        assert program == "edgetl"
        command_of, command, arguments = GROUP.resolve_command(None, words)
        command.make_context(command_of, arguments)


def test_a_list_of_fixed_values_is_named_in_help_and_errors() -> None:
    options = _panels(_page("export"))[COMMON]
    assert (
        "onnx, openvino, or both, separated by commas" in options and "fp32, fp16, int8 (weights and activations), int8-weights" in options
    )
    (done,) = edgetl_in_one_process([["export", "run", "--out", "bundle", "--format", "onnx,trt"]])
    assert done.code == 3 and "trt is not supported. Choose from onnx, openvino" in done.stderr
