"""Every refusal of the strict reader, by the line that the user sees."""

import os
import time
from pathlib import Path

import pytest

from fastwi.config.keys import SECTIONS
from fastwi.config.read import config_from_mapping, config_from_yaml, read_request
from fastwi.errors import ConfigError

GIVE_WHOLE = "; give a whole number, at least 0"
GIVE_LIST = "; give a list of whole numbers, at least 1"
WHOLE = " is not a whole number" + GIVE_WHOLE
LIST = " is not a whole number" + GIVE_LIST
BOOL = " is not true or false; give true or false"

# (YAML text, line that is named, message)
IN_YAML = [
    ("experimen: {k: 3}", 1, "'experimen': unknown section; did you mean experiment?"),
    ("Optimizer: {momentum: 0}", 1, "'Optimizer': unknown section; did you mean optimizer?"),
    ("experiment.k: 3", 1, "experiment.k: sections are nested here; write 'k:' indented below 'experiment:'"),
    (
        "optimizer: {learning-rate: 1}",
        1,
        "optimizer: unknown key 'learning-rate'; did you mean learning_rate?",
    ),
    (
        "optimizer:\n  lerning_rate: 1",
        2,
        "optimizer: unknown key 'lerning_rate'; did you mean learning_rate?",
    ),
    (
        "experiment: {batch_size: 4}",
        1,
        "experiment: unknown key 'batch_size'; did you mean optimizer.batch_size?",
    ),
    ("model: {zzz: 1}", 1, "model: unknown key 'zzz'; valid: name, weights, width"),
    (
        "experiment:\n  k: 3\n  k: 4",
        3,
        "duplicate key of experiment 'k', given on line 2 already; remove one",
    ),
    (
        "model: {name: resnet20}\nmodel: {}",
        2,
        "duplicate section 'model', given on line 1 already; remove one",
    ),
    ("experiment: {k: true}", 1, "experiment.k: true" + WHOLE),
    ("experiment: {k: 3.7}", 1, "experiment.k: 3.7" + WHOLE),
    ("experiment: {k: 3.0}", 1, "experiment.k: 3.0" + WHOLE),
    (
        "experiment: {k: '3'}",
        1,
        "experiment.k: '3' is not a whole number; give a whole number, at least 0, without quotes",
    ),
    ("experiment: {k: 010}", 1, "experiment.k: '010'" + WHOLE),
    ("experiment: {k: 1:30}", 1, "experiment.k: '1:30'" + WHOLE),
    ("experiment: {k: -1}", 1, "experiment.k: -1 is out of range" + GIVE_WHOLE),
    ("experiment: {k: 99999999999999999999}", 1, "experiment.k: a whole number beyond 64 bits" + GIVE_WHOLE),
    (
        "experiment: {k: }",
        1,
        "experiment.k: null is no value; give a whole number, at least 0, or leave the key out",
    ),
    ("experiment: {k: [3]}", 1, "experiment.k: a list" + WHOLE),
    ("experiment: {k: {a: 3}}", 1, "experiment.k: a mapping" + WHOLE),
    (
        "experiment: {children: 1}",
        1,
        "experiment.children: 1 is out of range; give a whole number, from 2 to 4096",
    ),
    (
        "optimizer: {learning_rate: fast}",
        1,
        "optimizer.learning_rate: 'fast' is not a number; give a number, at least 0",
    ),
    (
        "optimizer: {learning_rate: .nan}",
        1,
        "optimizer.learning_rate: nan is not finite; give a finite number",
    ),
    (
        "optimizer: {learning_rate: 1e999}",
        1,
        "optimizer.learning_rate: inf is not finite; give a finite number",
    ),
    (
        "optimizer: {learning_rate: false}",
        1,
        "optimizer.learning_rate: false is not a number; give a number, at least 0",
    ),
    ("augment: {flip: 1.5}", 1, "augment.flip: 1.5 is out of range; give a number, from 0 to 1"),
    ("optimizer: {nesterov: 1}", 1, "optimizer.nesterov: 1" + BOOL),
    ("optimizer: {nesterov: 'no'}", 1, "optimizer.nesterov: 'no'" + BOOL),
    (
        "experiment: {momentum: Rest}",
        1,
        "experiment.momentum: 'Rest' is not a choice; did you mean reset? valid: reset, average, keep",
    ),
    (
        "experiment: {momentum: zzz}",
        1,
        "experiment.momentum: 'zzz' is not a choice; valid: reset, average, keep",
    ),
    ("run: {name: 2024}", 1, "run.name: 2024 is not text; put it in quotes"),
    ("run: {name: yes}", 1, "run.name: true is not text; put it in quotes"),
    ('run: {name: "a\\nb"}', 1, "run.name: 'a\\nb' holds the unprintable character '\\n'; remove it"),
    (
        "schedule: {drop_epochs: 80}",
        1,
        "schedule.drop_epochs: 80 is not a list; write one, such as [80, 120]",
    ),
    ("schedule:\n  drop_epochs:\n  - 80\n  - 9.5", 2, "schedule.drop_epochs: 9.5" + LIST),
    ("schedule: {drop_epochs: [0]}", 1, "schedule.drop_epochs: 0 is out of range" + GIVE_LIST),
    ("schedule: {drop_epochs: [[80]]}", 1, "schedule.drop_epochs: a list" + LIST),
    ("seeds:", 1, "seeds: a section needs keys below it; add some or remove it"),
    ("seeds: 3", 1, "seeds: a section needs keys below it; add some or remove it"),
    ("? [a]\n: 3", 1, "the name of a section must be plain text"),
    ("- a", 1, "not a mapping; give sections, each 'name:' with keys below"),
    ("experiment: {k: !!int '3'}", 1, "YAML tags (!words) are not supported; remove it"),
    ("run: {name: !!python/object:os.system x}", 1, "YAML tags (!words) are not supported; remove it"),
    ("", None, "holds no settings; give it a section, or leave out --config for the defaults"),
    (
        "# only a comment",
        None,
        "holds no settings; give it a section, or leave out --config for the defaults",
    ),
    ("model: {name: a", 1, "not valid YAML: expected ',' or '}', but got '<stream end>'"),
    ("[" * 5000, 1, "nested too deeply; a configuration has sections of keys alone"),
    (
        "<<: {k: 3}",
        1,
        f"'<<': unknown section; valid: {', '.join(sorted(SECTIONS))}",
    ),
]

# (command line, message)
ON_COMMAND_LINE = [
    ("--experiment.kk 3", "--experiment.kk: unknown flag; did you mean --experiment.k?"),
    ("--batch_size 3", "--batch_size: unknown flag; did you mean --optimizer.batch_size?"),
    ("--dry_run", "--dry_run: unknown flag; did you mean --dry-run?"),
    ("--config-fil x", "--config-fil: unknown flag; did you mean --config?"),
    ("--qqqqqq", "--qqqqqq: unknown flag; --help lists all"),
    (
        "-C x.yaml",
        "'-C': unknown flag; flags start with --\n'x.yaml': stray argument; use --section.key VALUE",
    ),
    ("extra", "'extra': stray argument; use --section.key VALUE"),
    ("--", "'--': unknown flag; flags start with --"),
    ("--experiment.k", "--experiment.k: a value is missing; write --experiment.k VALUE"),
    ("--experiment.k --json", "--experiment.k: a value is missing; write --experiment.k VALUE"),
    ("--config", "--config: a value is missing; write --config FILE"),
    ("--config=", "--config: an empty file name; give a YAML file, or leave --config out"),
    ("--experiment.k 3 --experiment.k=3", "--experiment.k: given twice; remove one"),
    ("--json --json", "--json: given twice; remove one"),
    ("--json=true", "--json: takes no value; write --json alone"),
    ("--experiment.k=", "--experiment.k: ''" + WHOLE),
    ("--experiment.k 3.7", "--experiment.k: 3.7" + WHOLE),
    ("--experiment.k true", "--experiment.k: 'true'" + WHOLE),
    ("--experiment.k 1_0", "--experiment.k: '1_0'" + WHOLE),
    ("--experiment.k \u0663", "--experiment.k: '\u0663'" + WHOLE),
    ("--experiment.k -1", "--experiment.k: -1 is out of range" + GIVE_WHOLE),
    (
        "--optimizer.learning_rate nan",
        "--optimizer.learning_rate: 'nan' is not a number; give a number, at least 0",
    ),
    ("--optimizer.learning_rate 1e400", "--optimizer.learning_rate: inf is not finite; give a finite number"),
    ("--optimizer.nesterov maybe", "--optimizer.nesterov: 'maybe'" + BOOL),
    ("--schedule.drop_epochs 80,", "--schedule.drop_epochs: ''" + LIST),
    ("--schedule.drop_epochs [80,120]", "--schedule.drop_epochs: '[80'" + LIST),
    (
        "--engine.device=\udce9",
        "--engine.device: '\\udce9' holds the unprintable character '\\udce9'; remove it",
    ),
]


@pytest.mark.parametrize(("text", "line", "message"), IN_YAML)
def test_yaml_is_refused_in_one_line_that_says_where_and_what_to_do(
    text: str, line: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(text, "my.yaml")
    place = f"my.yaml line {line}" if line else "my.yaml"
    assert str(caught.value) == f"{place}: {message}"


@pytest.mark.parametrize(("line", "message"), ON_COMMAND_LINE)
def test_command_line_is_refused(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_request(line.split(" "), "fastwi.train")
    assert str(caught.value) == message


def test_all_problems_of_file_and_command_line_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("experiment: {k: x, s: 4.5, kk: 1}\n")
    with pytest.raises(ConfigError) as caught:
        read_request(["--config", str(file), "--experiment.k", "y", "--wrong"], "fastwi.train")
    assert str(caught.value).splitlines() == [
        "--wrong: unknown flag; --help lists all",
        f"{file} line 1: experiment: unknown key 'kk'; did you mean k?",
        f"{file} line 1: experiment.k: 'x'{WHOLE}",
        f"{file} line 1: experiment.s: 4.5{WHOLE}",
        f"--experiment.k: 'y'{WHOLE}",
    ]


def test_a_wrong_value_in_the_file_is_refused_though_a_flag_overrides_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("experiment: {k: 2.5}\n")
    with pytest.raises(ConfigError, match=r"line 1: experiment\.k: 2\.5 is not a whole number"):
        read_request(["--config", str(file), "--experiment.k", "3"], "fastwi.train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not UTF-8 text; give a YAML file"),
        (b"run: {name: \x01}", "not valid YAML: "),
        (b'run: {name: "\\UFFFFFFFF"}', "not valid YAML: "),
        (b"# " + b"x" * (1 << 20), "larger than 1 MiB; a configuration is a few lines of YAML"),
    ],
)
def test_a_file_that_is_no_yaml_text(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_request(["--config", str(file)], "fastwi.train")
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_config_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("model: {name: resnet20}\n")
    expected = {
        "digit.yaml": f"no such config file; did you mean {tmp_path}/digits.yaml?",
        "zzz": "no such config file; check the path",
        "no/such.yaml": f"no such config file; there is no directory {tmp_path}/no either; check the path",
        "": "cannot be read (Is a directory); give a YAML file",
        "digits.yaml/x": "cannot be read (Not a directory); give a YAML file",
        "a\0b": "not a possible file name; give a YAML file",
    }
    for name, message in expected.items():
        with pytest.raises(ConfigError) as caught:
            read_request(["--config", f"{tmp_path}/{name}"], "fastwi.train")
        assert str(caught.value).partition(": ")[2] == message


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"optimiser": {}}, "'optimiser': unknown section; did you mean optimizer?"),
        ({"model": 3}, "model: 3 is no mapping of keys; give one"),
        ({"model": {"nam": "x"}}, "model: unknown key 'nam'; did you mean name?"),
        (
            {"experiment": {"k": True}},
            "experiment.k: true" + WHOLE,
        ),
        ({"experiment": {"k": None}}, "experiment.k: null is no value; "),
        ({"experiment": {"k": 10**5000}}, "experiment.k: a whole number beyond 64 bits; "),
        ({"optimizer": {"momentum": 10**5000}}, "optimizer.momentum: inf is not finite; "),
        (
            {"optimizer": {"momentum": object()}},
            "optimizer.momentum: a value of type object is not a number; ",
        ),
        ({3: {}}, "'3': unknown section; "),
        ([], "configuration: a list is no mapping of sections; give one"),
    ],
)
def test_a_mapping_is_refused_just_so(mapping: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(mapping)
    assert str(caught.value).startswith(message)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe\.yaml: a named pipe; give a YAML file"):
        read_request(["--config", str(tmp_path / "pipe.yaml")], "fastwi.train")


@pytest.mark.parametrize("text", ["{a: " * 100_000, "[" * 100_000, "- " * 100_000, "experiment:\n  k: " + "[" * 33])
def test_deep_nesting_is_refused_before_it_costs_time(text):
    begun = time.process_time()
    with pytest.raises(ConfigError, match="nested too deeply"):
        config_from_yaml(text)
    assert time.process_time() - begun < 20  # PyYAML by itself takes minutes: its time grows with the square


@pytest.mark.parametrize(
    ("experiment", "named"),
    [
        ({"k": 2_000_000_000}, r"experiment\.k: 2,000,000,000; .*2,000,000,030 epochs"),
        ({"s": 400_000, "children": 3}, r"experiment\.s: 400,000; .*1,200,020 epochs"),
        ({"after": 600_000, "continue_children": True}, r"experiment\.after: 600,000; .*1,800,030 epochs"),
        ({"k": 10**6, "s": 0, "after": 1}, r"experiment\.k: 1,000,000; .*1,000,001 epochs"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_its_key(experiment, named):
    begun = time.process_time()
    with pytest.raises(ConfigError, match=named):
        config_from_mapping({"experiment": experiment})
    assert time.process_time() - begun < 5
    config_from_mapping({"experiment": {"k": 10**6 - 1, "s": 0, "after": 1}})
