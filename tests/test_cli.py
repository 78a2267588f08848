"""The command line as it is typed: help, errors without tracebacks, completion, and data -> training -> evaluation from end to end.

What the terminal shows while it works (progress.py) and where numbers come from (provenance.py, devices.py) is tested here too.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

from metasdf import prior as priors
from metasdf import progress, provenance
from metasdf import train as training
from metasdf.cli import cli, parse_budget
from metasdf.devices import pick_device
from metasdf.errors import InputError, MetaSDFError, TrainingError, UsageError
from metasdf.experiments import EXPERIMENTS
from metasdf.progress import TrainingMonitor, duration, reporter

COMMANDS = list(cli.commands)
TINY = ["--set", "field.width=16", "--set", "field.hidden_layers=1", "--set", "inner.steps=2", "--set", "train.batch=10",
        "--set", "n_context=60", "--set", "n_query=60", "--set", "n_test=60"]  # fmt: skip


def run(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], **options)


def good(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


def bad(code: int, *arguments: object) -> str:
    """The message of a command that fails: with our words and the right exit code, never with a traceback."""
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "digits"
    result = good("prepare", "mnist-slice", "-o", path, "--resolution", 24)
    assert result.stdout == f"{path}: 100 found = 100 kept + 0 dropped; train 60, val 20, test 20\n"
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Two epochs with everything on, and what was printed."""
    path = tmp_path_factory.mktemp("cli") / "run"
    return path, good("train", "mnist-levelset", "--data", data, "--run", path, "--epochs", 2, *TINY, "--tensorboard")


# -- help ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str) -> None:
    text = good(flag).stdout
    assert text.startswith("Usage: ") and all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    text = good(command, "-h").stdout
    assert text.startswith(f"Usage: cli {command} ")
    options = [p for p in cli.commands[command].params if isinstance(p, click.Option)]
    assert all(option.opts[0] in text for option in options)
    assert cli.commands[command].help


def test_version() -> None:
    from metasdf import __version__

    assert good("--version").stdout.strip().endswith(__version__)


def test_an_unknown_command_suggests_the_nearest() -> None:
    assert "No such command 'trian'. Did you mean 'train'?" in bad(2, "trian")
    assert "No such command 'xyzzy'." in bad(2, "xyzzy")


def test_no_command_shows_the_commands() -> None:
    assert "prepare" in run().output


# -- end to end ----------------------------------------------------------------------------------------------------------------------------


def test_training_says_what_it_made(data: Path, trained: tuple[Path, Result]) -> None:
    path, result = trained
    assert result.stdout.startswith("done: 12 steps in ") and "validation MSE " in result.stdout and "(field units, 20 shapes)" in result.stdout
    assert f"prior: {path / 'prior.safetensors'}" in result.stdout
    assert f"next: metasdf evaluate {path} --data {data}" in result.stdout
    assert result.stderr.startswith("products: ") and "\nmemory: about " in result.stderr
    assert "\nstep 1  epoch " in result.stderr and "\nstep 12: validation MSE " in result.stderr


def test_a_run_folder(trained: tuple[Path, Result]) -> None:
    path, _ = trained
    names = {p.name for p in path.iterdir()}
    assert names == {"config.json", "checkpoint.safetensors", "prior.safetensors", "metrics.jsonl", "pictures", "tensorboard"}
    assert [p.name for p in (path / "pictures").iterdir()] == ["step-0000012.png"]
    assert (path / "pictures" / "step-0000012.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [12] and rows[-1]["progress"] == 1.0
    assert all(row.keys() == {"step", "epoch", "elapsed", "progress", "eta", "lr", "val_mse", "val_mae", "val_n"} for row in rows)
    assert json.loads((path / "config.json").read_text())["experiment"]["field"]["width"] == 16


def test_tensorboard_events(trained: tuple[Path, Result]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(trained[0] / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "shapes_per_second", "val_mse", "val_mae"}
    assert [e.step for e in events.Scalars("loss")] == [10]
    rows = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("val_mse")] == pytest.approx([row["val_mse"] for row in rows])


def test_the_same_command_again(data: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    path = shutil.copytree(trained[0], tmp_path / "run")
    typed = ["train", "mnist-levelset", "--data", data, "--run", path, *TINY, "--no-pictures", "--epochs"]
    again = good(*typed, 2)
    assert f"resuming {path} at step 12 " in again.stderr and "has reached its end already" in again.stderr and "done: 12 steps" in again.stdout
    assert "done: 18 steps" in good(*typed, 3).stdout
    changed = bad(2, *typed, 3, "--set", "train.lr=0.5")
    assert "train.lr: 0.002 -> 0.5" in changed and "what to do: " in changed
    assert "belongs to mnist-levelset" in bad(2, "train", "mnist-dense", *typed[2:], 3)


def test_evaluation(data: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.json"
    result = good("evaluate", trained[0], "--data", data, "--json", target, "--runs", 2, "--limit", 7, "--steps", 3, "--threads", 1)
    lines = result.stdout.splitlines()
    assert lines[0] == "mnist-levelset on MNIST slice, split test: levelset context of 60 points, n 7, failed 0, 2 runs (field units)"
    assert [line.split()[0] for line in lines[1:6]] == ["step", "0", "1", "2", "3"]
    assert lines[6].split()[:2] == ["(steps:", "the"] and [line.split()[0] for line in lines[7:9]] == ["mean", "std"]
    assert lines[9].startswith("fit: ") and lines[10] == f"written: {target}"
    assert "note: mnist-levelset was trained with 2 steps; steps 3 to 3 repeat the rates of step 2" in result.stderr
    assert "evaluating: 21 of 21" in result.stderr  # the steps, and two runs
    written = json.loads(target.read_text())
    assert (written["n"], written["failed"], written["runs"]) == (7, 0, 2)
    assert written["metrics"].keys() == {"mse", "mae", "misclassified", "mse_std", "mae_std", "misclassified_std", "mse_median"}
    assert f"{written['after_step']['mse'][3]:.4g}" in lines[5] and f"{written['metrics']['mse']:.4g}" in lines[7]
    assert {"alone", "batched"} < written["fit_ms"].keys()


def test_evaluation_of_a_prior_file_prints_alone(data: Path, trained: tuple[Path, Result]) -> None:
    result = good("evaluate", trained[0] / "prior.safetensors", "--data", data, "--split", "val", "--limit", 1)
    assert "split val" in result.stdout and "1 run (field units)" in result.stdout and "written" not in result.stdout


def test_models(trained: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    card = json.loads(good("models", trained[0]).stdout)
    assert card["name"] == "mnist-levelset" and card["experiment"]["n_test"] == 60 and card["card"]["training"]["steps"] == 12
    shutil.copy(trained[0] / "prior.safetensors", tmp_path / "mnist-levelset.safetensors")
    monkeypatch.setattr(priors, "SHIPPED", tmp_path)
    assert good("models").stdout.startswith("mnist-levelset  2D, levelset context, ")
    error = bad(2, "models", "mnist-lewelset")
    assert "there is no prior 'mnist-lewelset'" in error and "did you mean mnist-levelset?" in error


def test_starting_from_a_prior(data: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    typed = ["train", "mnist-levelset", "--data", data, "--run", tmp_path / "run", "--epochs", 1, *TINY, "--no-pictures", "--init", trained[0]]
    assert "done: 6 steps" in good(*typed).stdout
    error = bad(2, *typed[:4], "--run", tmp_path / "other", *typed[6:], "--set", "field.width=17")
    assert "--init has other layers or rates than this experiment" in error and "what to do: " in error
    assert not (tmp_path / "other").exists()


def test_a_data_set_that_was_changed(data: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    good("prepare", "mnist-slice", "-o", tmp_path / "finer", "--resolution", 28)
    error = bad(2, "train", "mnist-levelset", "--data", tmp_path / "finer", "--run", trained[0], "--epochs", 3, *TINY)
    assert "the data set differs from the one this run began with" in error


def test_show_prints_the_configuration(tmp_path: Path) -> None:
    shown = json.loads(good("train", "mnist-dense", "--preset", "paper", "--set", "train.lr=3e-4", "--epochs", 7, "--show").stdout)
    assert (shown["train"]["lr"], shown["train"]["epochs"], shown["field"]["width"]) == (3e-4, 7, 256)
    assert json.loads(good("train", "mnist-dense", "--set", " train.clip = none ", "--show").stdout)["train"]["clip"] is None


@pytest.mark.parametrize(("typed", "may"), [([], True), (["--set", "train.split=2"], True), (["--set", " inner.checkpoint =false"], False)])
def test_a_checkpoint_setting_that_is_typed_is_obeyed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], may: bool
) -> None:
    """The default looks the same in the configuration, and may be changed where memory is short."""
    found: list[training.Trainer] = []
    monkeypatch.setattr(training.Trainer, "fit", lambda self: found.append(self) or {"val_mse": 0.0, "val_mae": 0.0, "val_n": 1})
    good("train", "mnist-dense", "--data", data, "--run", tmp_path / "run", *TINY, *typed)
    assert [each.may_checkpoint for each in found] == [may]


# -- budgets -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), ("3", 180), ("0.5", 30), ("2M", 120), ("1e2s", 100)])
def test_budget(text: str, seconds: float) -> None:
    assert parse_budget(None, None, text) == seconds  # type: ignore[arg-type]
    assert parse_budget(None, None, None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "s", "5x", "-3", "0", "0s", "-1h", "inf", "nan", "nanm", "infh", "1:30", "five"])
def test_a_bad_budget(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no duration; write 90s, 5m or 1\.5h"):
        parse_budget(None, None, text)  # type: ignore[arg-type]


def test_a_budget_ends_the_training(data: Path, tmp_path: Path) -> None:
    result = good("train", "mnist-dense", "--data", data, "--run", tmp_path / "run", "--budget", "0.2s", *TINY, "--no-pictures")
    assert result.stdout.startswith("done: ")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["progress"] == 1.0


# -- errors --------------------------------------------------------------------------------------------------------------------------------

D, R = "{data}", "{tmp}/run"
ON = ["--data", D, "--run", R]
ERRORS: dict[str, tuple[int, list[str], str]] = {
    "unknown prior": (2, ["evaluate", "nobody", "--data", D], "there is no prior 'nobody'"),
    "no prior in the folder": (2, ["evaluate", "{tmp}", "--data", D], "the folder holds no trained prior"),
    "no data": (2, ["evaluate", "{run}", "--data", "{tmp}/nothing"], "The data set does not exist"),
    "no data set": (1, ["evaluate", "{run}", "--data", "{tmp}"], "it has no manifest.json"),
    "unknown split": (2, ["evaluate", "{run}", "--data", D, "--split", "tset"], "no split 'tset'"),
    "folder for a result": (2, ["evaluate", "{run}", "--data", D, "--json", "{tmp}"], "--json names a folder"),
    "file above a result": (2, ["evaluate", "{run}", "--data", D, "--limit", "1", "--json", "{file}/a.json"], "cannot write a.json"),
    "no device": (2, ["evaluate", "{run}", "--data", D, "--device", "cuda:99"], "the device 'cuda:99' cannot be used"),
    "no device of that name": (2, ["evaluate", "{run}", "--data", D, "--device", "gpu"], "the device 'gpu' cannot be used"),
    "damaged prior": (1, ["evaluate", "{file}", "--data", D], "the prior file cannot be read"),
    "checkpoint as a prior": (1, ["evaluate", "{run}/checkpoint.safetensors", "--data", D], "no metasdf prior of version 1"),
    "unknown experiment": (2, ["train", "mnist"], "there is no experiment 'mnist'"),
    "data and run missing": (2, ["train", "mnist-dense"], "--data and --run are needed"),
    "two ends": (2, ["train", "mnist-dense", "--budget", "1m", "--epochs", "2"], "both say when to stop"),
    "--set without a value": (2, ["train", "mnist-dense", "--set", "train.lr"], "--set train.lr has no value"),
    "unknown field": (2, ["train", "mnist-dense", "--set", "train.speed=1"], "TrainConfig has no field 'speed'"),
    "bad value": (2, ["train", "mnist-dense", "--set", "train.lr=fast"], "cannot set train.lr to 'fast'"),
    "no batch": (2, ["train", "mnist-dense", *ON, "--set", "train.batch=0"], "cannot set train.batch to '0'"),
    "another dimension": (2, ["train", "mnist-dense", *ON, *TINY, "--set", "field.in_dim=3"], "is for 3D shapes, the data set holds 2D"),
    "too many points": (2, ["train", "mnist-dense", *ON], "512 context + 512 query points asked of a shape with 576 samples"),
    "other files": (2, ["train", "mnist-dense", "--data", D, "--run", "{tmp}", *TINY], "the run folder holds other files"),
    "a file for a run": (2, ["train", "mnist-dense", "--data", D, "--run", "{file}", *TINY], "--run names a file"),
    "a file above a run": (2, ["train", "mnist-dense", "--data", D, "--run", "{file}/run", *TINY], "cannot write config.json"),
    "unknown prior to start from": (2, ["train", "mnist-dense", *ON, *TINY, "--init", "nobody"], "there is no prior 'nobody'"),
    "unknown source": (2, ["prepare", "nothing", "-o", "{tmp}/d"], "there is no source 'nothing'"),
    "--from without mnist": (2, ["prepare", "mnist-slice", "--from", "{tmp}", "-o", "{tmp}/d"], "--from does not go with mnist-slice"),
    "an option of meshes": (2, ["prepare", "mnist-triple", "--samples", "9", "-o", "{tmp}/d"], "--samples does not go with mnist-triple"),
    "an option of silhouettes": (2, ["prepare", "mnist", "--foreground", "dark", "-o", "{tmp}/d"], "it is for folders of images"),
    "a count of silhouettes": (2, ["prepare", "mnist-slice", "--count", "9", "-o", "{tmp}/d"], "it is for MNIST and meshes"),
    "folder without images": (1, ["prepare", "{tmp}", "-o", "{tmp}/d"], "The folder holds neither meshes nor images"),
    "another data set there": (2, ["prepare", "mnist-slice", "-o", D, "--resolution", "30"], "Another data set is already there"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do(data: Path, trained: tuple[Path, Result], tmp_path: Path, case: str) -> None:
    code, arguments, says = ERRORS[case]
    (tmp_path / "file").write_text("mine")
    places = {"data": data, "run": trained[0], "tmp": tmp_path, "file": tmp_path / "file"}
    error = bad(code, *(a.format(**places) for a in arguments))
    assert says in error and "what to do: " in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["train", "mnist-dense", "--preset", "fast"], "'fast' is not one of 'cpu', 'paper'"), (["train"], "Missing argument"),
     (["train", "mnist-dense", "--budget", "soon"], "'soon' is no duration"), (["train", "mnist-dense", "--epochs", "0"], "not in the range x>=1"),
     (["evaluate", "x"], "Missing option '--data'"), (["completion", "tcsh"], "'tcsh' is not one of"), (["prepare", "mnist-slice"], "Missing option"),
     (["train", "mnist-dense", "--sett", "a=b"], "No such option")],
)  # fmt: skip
def test_usage_errors_of_click(arguments: list[str], says: str) -> None:
    error = bad(2, *arguments)
    assert says in error and error.startswith("Usage: ")


@pytest.mark.parametrize(("kind", "code"), [(MetaSDFError, 1), (InputError, 1), (TrainingError, 1), (UsageError, 2)])
def test_all_four_parts_are_printed(monkeypatch: pytest.MonkeyPatch, kind: type[MetaSDFError], code: int) -> None:
    def fail(name: str) -> None:
        raise kind("it broke", where="here", cause="bad luck", fix="try again")

    monkeypatch.setattr(priors, "load", fail)
    assert bad(code, "models", "x") == "error: it broke\n  where: here\n  likely cause: bad luck\n  what to do: try again\n"


def test_parts_without_words_are_left_out() -> None:
    assert str(MetaSDFError("it broke")) == "it broke"
    assert str(UsageError("it broke", fix="try again")) == "it broke\n  what to do: try again"


# -- completion ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = good("completion", shell).stdout
    assert f"_METASDF_COMPLETE={shell}_complete" in script and "metasdf" in script


def complete(typed: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    words = typed.split(" ")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    return BashComplete(cli, {}, "metasdf", "_METASDF_COMPLETE").complete().splitlines()


def test_completion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert complete("metasdf tra", monkeypatch) == ["plain,train"]
    assert complete("metasdf ", monkeypatch) == [f"plain,{name}" for name in sorted(COMMANDS)]
    assert complete("metasdf train mnist-l", monkeypatch) == [f"plain,{name}" for name in EXPERIMENTS if name.startswith("mnist-l")]
    assert complete("metasdf train mnist-dense --pre", monkeypatch) == ["plain,--preset"]
    assert complete("metasdf train --preset p", monkeypatch) == ["plain,paper"]
    assert complete("metasdf evaluate ./r", monkeypatch)[-1] == "file,./r"
    assert complete("metasdf completion z", monkeypatch) == ["plain,zsh"]


@pytest.mark.parametrize("typed", ["metasdf trian mnist-", "metasdf evaluat --d", "metasdf nothing "])
def test_completion_after_a_misspelt_command_is_silent(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    complete(typed, monkeypatch)  # no error that would appear in the middle of the line being typed


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes(tmp_path: Path) -> None:
    """The printed script in a real bash, which calls the program through the environment variable."""
    program = tmp_path / "metasdf"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m metasdf "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    source = str(Path(progress.__file__).parents[1])
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}  # fmt: skip
    script = 'eval "$(metasdf completion bash 2>/dev/null | grep -v "^complete ")"; COMP_WORDS=(metasdf tra); COMP_CWORD=1\n' \
             '_metasdf_completion metasdf; echo "${COMPREPLY[@]}"'  # fmt: skip
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["train"], result.stderr


# -- progress ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (123, "2:03"), (3599.7, "1:00:00"), (3723, "1:02:03"), (90_061, "25:01:01"), (-1, "-"),
     (float("inf"), "-"), (float("nan"), "-"), (1e7, "-")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(True, 2000, "fitting") as report:
        for done in range(0, 2001, 50):
            report(done, 2000)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [f"fitting: {k * 200:,} of 2,000" for k in range(1, 11)]


def test_few_items_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(True, 3, "fitting") as report:
        for done in (1, 2, 3):
            report(done, 3)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_no_progress_and_the_callers_own(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(False, 5, "fitting") as report:
        report(5, 5)
    seen: list[tuple[int, int]] = []
    with reporter(lambda done, total: seen.append((done, total)), 5, "fitting") as report:
        report(2, 5)
    assert seen == [(2, 5)] and capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(step: int, **values: float) -> dict[str, float]:
    shown = {"epoch": 0.5, "elapsed": 61.0, "progress": 0.25, "eta": 183.0, "lr": 1e-3, "loss": 0.125, "shapes_per_second": 9.87}
    return {"step": step, **shown, **values}


VALIDATION = {"val_mse": 2e-3, "val_mae": 3e-2, "val_n": 20}


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "140")
    with reporter(True, 7, "fitting") as report:
        report(7, 7)
    assert "fitting" in terminal.getvalue() and "7/7" in terminal.getvalue()


def test_a_training_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with TrainingMonitor() as monitor:
        monitor.say("a [path] with brackets")
        monitor.validated(row(3, **VALIDATION))
        monitor.step(row(4))
    shown = terminal.getvalue()
    assert "a [path] with brackets" in shown and "step 3: validation MSE 2.000e-03, MAE 3.000e-02 (20 shapes)" in shown
    assert "25% step 4  epoch 0.50  loss 1.250e-01  val MSE 2.000e-03 MAE 3.000e-02  9.9 shapes/s  1:01 gone, 3:03 left" in shown


def test_a_training_elsewhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("metasdf.progress.time.monotonic", lambda: now)
    with TrainingMonitor() as monitor:
        monitor.step(row(1))
        now += 14.9
        monitor.step(row(2))
        now += 0.2
        monitor.step(row(1003, eta=float("inf"), loss=float("nan")))
        monitor.validated(row(1003, **VALIDATION))
    assert capsys.readouterr().err.splitlines() == [
        "step 1  epoch 0.50  loss 1.250e-01  9.9 shapes/s  1:01 gone, 3:03 left",
        "step 1,003  epoch 0.50  loss nan  9.9 shapes/s  1:01 gone, - left",
        "step 1,003: validation MSE 2.000e-03, MAE 3.000e-02 (20 shapes)",
    ]


def test_tensorboard_that_is_not_there(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    error = bad(2, "train", "mnist-dense", "--data", data, "--run", tmp_path / "run", *TINY, "--tensorboard")
    assert "--tensorboard needs the tensorboard package" in error and "pip install 'metasdf[tensorboard]'" in error
    assert not (tmp_path / "run").exists()


# -- where numbers come from ---------------------------------------------------------------------------------------------------------------


def test_hardware() -> None:
    text = provenance.hardware(torch.device("cpu"))
    assert f"{os.cpu_count()} cores, {torch.get_num_threads()} threads" in text and not text.startswith(",")


def test_the_commit_of_a_checkout_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.commit() == "unknown" or 12 <= len(provenance.commit().rstrip("+")) <= 40

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", no_git)
    assert provenance.commit() == "unknown"


def test_the_commit_says_that_files_were_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "0123456789ab\n", "ls-files": "provenance.py\n", "status": " M train.py\n"}

    def git(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, stdout=answers[words[1]])

    monkeypatch.setattr(provenance.subprocess, "run", git)
    assert provenance.commit() == "0123456789ab+"
    answers["status"] = ""
    assert provenance.commit() == "0123456789ab"


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="the device 'abacus' cannot be used") as caught:
        pick_device("abacus")
    assert caught.value.fix == "--device cpu" and caught.value.cause
