"""Several processes on one run: really started, they do what one does alone.

`python test_distributed.py FOLDER`, started by torchrun, is both of a pair of processes: it goes through all SCENARIOS in FOLDER and writes
what each process saw. In float64 (see `exactly`) a pair and one process must agree to rounding, not to a tolerance.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_train import CPU, Watch, assert_same_bits, assert_same_training, command, exactly, lines_of, poison, state_of, tiny, trainer, write_circles

from metasdf import distributed
from metasdf import train as training
from metasdf.cli import cli
from metasdf.data.loader import Loader
from metasdf.data.store import Store
from metasdf.distributed import Group, own_device, processes
from metasdf.errors import MetaSDFError, TrainingError, UsageError
from metasdf.experiments import Experiment
from metasdf.train import Limit, Quiet, Trainer

STEPS = 6
EVEN, UNEVEN = tiny(products="float32"), tiny(products="float32", batch=5)
ADAM = tiny("levelset", preset="paper")
CODES = tiny("dense-concat", products="float32")
CONTINUED = tiny(products="float32", schedule="constant")


def fit(folder: Path, name: str, e: Experiment, group: Group, *, steps: int = STEPS, watch: Watch | None = None, **options: Any) -> Trainer:
    watch = watch or Watch()
    ours = trainer(folder / name, Store.open(folder / "store"), e, steps=steps, watch=watch, group=group, **options)
    ours.fit()
    return ours


# -- what a pair of processes does ---------------------------------------------------------------------------------------------------------


def even(folder: Path, group: Group) -> Any:
    watch = Watch()
    fit(folder, "even", EVEN, group, watch=watch, validate_seconds=0, checkpoint_seconds=0)
    return {"losses": [row["loss"] for row in watch.rows], "said": watch.said}


def uneven(folder: Path, group: Group) -> Any:
    ours = fit(folder, "uneven", UNEVEN, group)
    return [len(ours.loader.batch(step).task) for step in range(3)]


def other_ways(folder: Path, group: Group) -> None:
    """Another optimiser and rule, batches in groups."""
    fit(folder, "adam", replace(ADAM, train=replace(ADAM.train, split=1)), group)


def codes(folder: Path, group: Group) -> None:
    """Codes, whose gradients are sparse: each process sees the rows of its own tasks."""
    fit(folder, "codes", CODES, group)


def first_half(folder: Path, group: Group) -> None:
    fit(folder, "two-one", CONTINUED, group, steps=3)


def second_half(folder: Path, group: Group) -> Any:
    watch = Watch()
    fit(folder, "one-two", CONTINUED, group, watch=watch)
    return [row["step"] for row in watch.rows]


def poisoned(folder: Path, group: Group) -> Any:
    """One of the two meets a batch that is not finite; then all of them are."""
    ours = trainer(folder / "poisoned", Store.open(folder / "store"), EVEN, steps=20, group=group, checkpoint_seconds=0)
    if not group.main:
        poison(ours, 2, *range(6, 20))
    with raised() as errors:
        ours.fit()
    return {"errors": errors, "step": ours.step, "finite": all(bool(p.isfinite().all()) for p in ours.model.parameters())}


def budget(folder: Path, group: Group) -> Any:
    """The clocks of the two differ; the first one's counts."""
    watch = Watch()
    if not group.main:
        watch.each = lambda: time.sleep(0.02)
    ours = Trainer(EVEN, Store.open(folder / "store"), folder / "budget", Limit(0.5, None), watch, CPU, pictures=False, group=group)
    ours.fit()
    return {"steps": ours.step, "elapsed": ours.elapsed, "progress": [row["progress"] for row in watch.rows]}


def signalled(folder: Path, group: Group) -> Any:
    """A signal to the second process alone."""
    watch = Watch(step3=lambda: None if group.main else signal.raise_signal(signal.SIGTERM))
    ours = fit(folder, "signalled", EVEN, group, watch=watch)
    return {"step": ours.step, "signal": ours.stop_signal}


def memory(folder: Path, group: Group) -> Any:
    """The second process has little free memory, and both take their tasks in smaller groups."""
    watch = Watch()
    free = training.available_bytes
    training.available_bytes = lambda device: 2**40 if group.main else 2 * 300_000  # type: ignore[assignment]  # two share a machine
    try:
        ours = fit(folder, "memory", replace(EVEN, train=replace(EVEN.train, batch=8)), group, steps=1, watch=watch)
    finally:
        training.available_bytes = free
    return {"at_once": ours.at_once, "said": watch.said[0]}


def strangers(folder: Path, group: Group) -> Any:
    """Each of the two differs once: in its data, in its configuration, in its end."""
    found = []
    for data, e, steps in (("other", EVEN, 6), ("store", tiny(products="float32", lr=5e-4), 6), ("store", EVEN, 7)):
        given = ("store", EVEN, 6) if group.main else (data, e, steps)
        with raised() as errors:
            trainer(folder / "strangers", Store.open(folder / given[0]), given[1], steps=given[2], group=group).fit()
        found += errors
    return found


def exchanges(folder: Path, group: Group) -> Any:
    """The four things a group does."""
    rank = group.rank
    summed = [torch.tensor(1.0 + rank), torch.tensor([[1e-30, 2.0 * rank]]), torch.tensor([5, 7], dtype=torch.float32)]
    group.sum(summed)
    shared = [torch.tensor([0.1 + rank, 1 / 3]), torch.tensor(7 - rank), torch.full((2, 2), 1 / 3 + rank, dtype=torch.float64)]
    parameter = torch.nn.Parameter(torch.full((3,), float(rank)))
    group.share([*shared, parameter])
    return {
        "sum": [t.tolist() for t in summed], "shared": [t.tolist() for t in [*shared, parameter]], "dtypes": [str(t.dtype) for t in shared],
        "agreed": group.agree(0.0 if rank else 12.5, 15 if rank else 0, -3 - rank), "same": group.differing("one"),
        "differing": group.differing(f"text {rank}"), "threads": torch.get_num_threads(), "group": group,
    }  # fmt: skip


SCENARIOS: list[Callable[[Path, Group], Any]] = [
    exchanges, even, uneven, other_ways, codes, first_half, second_half, poisoned, budget, signalled, memory, strangers,
]  # fmt: skip


@contextmanager
def raised() -> Iterator[list[str]]:
    errors: list[str] = []
    try:
        yield errors
    except MetaSDFError as error:
        errors.append(f"{type(error).__name__}: {error.what}")


def take_part(folder: Path) -> None:
    with exactly(), processes(CPU) as group:
        found = {scenario.__name__: scenario(folder, group) for scenario in SCENARIOS}
    found["threads"] = [name for name in threads() if "gloo" in name]
    (folder / f"process-{group.rank}.json").write_text(json.dumps(found))


def threads() -> list[str]:
    """Names of this process's threads, those outside Python too; none where the system does not say."""
    return [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


# -- and how it compares -------------------------------------------------------------------------------------------------------------------


def torchrun(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    source = str(Path(training.__file__).parents[1])
    # torchrun alone decides who takes part; the address of the machine's own loop needs no name service
    clean = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OMP_NUM_THREADS")}
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    words = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
             "--local-addr", "localhost", *map(str, arguments)]  # fmt: skip
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean | environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All scenarios, each done by two processes; and by one, for comparison, under the same name in `alone`."""
    folder = tmp_path_factory.mktemp("pair")
    store = write_circles(folder / "store")
    write_circles(folder / "other", seed=1)
    with exactly():
        trainer(folder / "one-two", store, CONTINUED, steps=3).fit()
        for name, e in {"even": EVEN, "uneven": UNEVEN, "adam": ADAM, "codes": CODES, "continued": CONTINUED}.items():
            trainer(folder / "alone" / name, store, e, steps=STEPS, watch=WATCHES.setdefault(name, Watch())).fit()
    pair = torchrun(__file__, folder, OMP_NUM_THREADS="1")
    out, err = pair.communicate(timeout=900)
    assert pair.returncode == 0, out + err
    return folder


WATCHES: dict[str, Watch] = {}


def seen(folder: Path, scenario: Callable[..., Any]) -> list[Any]:
    """What the first and the second process report."""
    return [json.loads((folder / f"process-{rank}.json").read_text())[scenario.__name__] for rank in (0, 1)]


def test_a_group_leaves_no_threads(folder: Path) -> None:
    """One that is left while the interpreter ends can abort the process."""
    assert [json.loads((folder / f"process-{rank}.json").read_text())["threads"] for rank in (0, 1)] == [[], []]


def test_exchanges(folder: Path) -> None:
    first, second = seen(folder, exchanges)
    third = float(np.float32(1 / 3))
    for found in (first, second):
        assert found["sum"] == [3.0, [[pytest.approx(2e-30), 2.0]], [10.0, 14.0]]
        assert found["shared"] == [[pytest.approx(0.1), third], 7, [[1 / 3] * 2] * 2, [0.0] * 3]
        assert found["dtypes"] == ["torch.float32", "torch.int64", "torch.float64"]
        assert found["agreed"] == [12.5, 15.0, -3.0] and found["same"] == [] and found["differing"] == [1]
    assert (first["group"], second["group"]) == ([0, 2, 2], [1, 2, 2])


def test_two_processes_train_as_one_does(folder: Path) -> None:
    assert_same_training(folder / "even", folder / "alone" / "even")
    first, second = seen(folder, even)
    assert first["losses"] == second["losses"]  # the same bits
    assert first["losses"] == pytest.approx([row["loss"] for row in WATCHES["even"].rows], rel=1e-9)


def test_a_batch_that_does_not_divide(folder: Path) -> None:
    assert_same_training(folder / "uneven", folder / "alone" / "uneven")
    assert seen(folder, uneven) == [[3] * 3, [2] * 3]


def test_another_method_and_groups_of_tasks(folder: Path) -> None:
    assert_same_training(folder / "adam", folder / "alone" / "adam")


def test_codes_of_either_process(folder: Path) -> None:
    assert_same_training(folder / "codes", folder / "alone" / "codes")


def test_the_first_process_alone_speaks_and_writes(folder: Path) -> None:
    first, _ = seen(folder, even)
    assert any("memory: about" in text and "on each of 2 processes" in text for text in first["said"])
    assert [row["step"] for row in lines_of(folder / "even")] == [*range(1, STEPS + 1), STEPS]  # a row for each validation, and no second one
    assert {p.name for p in (folder / "even").iterdir()} == {"config.json", "checkpoint.safetensors", "prior.safetensors", "metrics.jsonl"}


def test_two_go_on_where_one_stopped(folder: Path) -> None:
    assert seen(folder, second_half) == [[4, 5, 6], [4, 5, 6]]
    assert_same_training(folder / "one-two", folder / "alone" / "continued")


def test_one_goes_on_where_two_stopped(folder: Path, tmp_path: Path) -> None:
    watch = Watch()
    with exactly():
        trainer(folder / "two-one", Store.open(folder / "store"), CONTINUED, steps=STEPS, watch=watch).fit()
    assert [row["step"] for row in watch.rows] == [4, 5, 6]
    assert_same_training(folder / "two-one", folder / "alone" / "continued")


def test_a_batch_that_is_not_finite_is_left_out_by_both(folder: Path) -> None:
    for found in seen(folder, poisoned):
        assert found["errors"] == ["TrainingError: the loss was not finite 10 times in a row, up to step 16"]
        assert found["step"] == 16 and found["finite"]
    assert state_of(folder / "poisoned")["step"] == 5


def test_a_budget_is_the_first_ones(folder: Path) -> None:
    first, second = seen(folder, budget)
    assert first["steps"] == second["steps"] == len(first["progress"]) and first["elapsed"] == second["elapsed"] >= 0.5
    assert first["progress"][-1] == 1.0


def test_a_signal_to_one_stops_both(folder: Path) -> None:
    assert seen(folder, signalled) == [{"step": 3, "signal": signal.SIGTERM}] * 2
    assert state_of(folder / "signalled")["step"] == 3


def test_the_least_free_memory_decides(folder: Path) -> None:
    first, second = seen(folder, memory)
    assert first == second
    assert first["at_once"] < 4 and f"; so {first['at_once']} at a time" in first["said"]


def test_other_data_or_settings_are_refused_by_name(folder: Path) -> None:
    for found in seen(folder, strangers):
        assert found == [f"UsageError: {what} of process 1 is not that of process 0 (of 2)"
                         for what in ("the data set", "the configuration", "the configuration")]  # fmt: skip
    assert not (folder / "strangers").exists()


# -- the command line ----------------------------------------------------------------------------------------------------------------------


def test_torchrun_stopped_and_typed_again(tmp_path: Path) -> None:
    """SIGTERM to torchrun, which sends it to both; the same command goes on, and one process can end it."""
    store, run = write_circles(tmp_path / "store"), tmp_path / "run"
    typed = [word for word in command(store, run) if word not in ("--threads", "1")]
    first = torchrun("-m", "metasdf", "--", *typed, "--epochs", 1_000_000)
    assert first.stderr is not None
    try:
        for line in first.stderr:
            if line.startswith("step "):
                break
        first.terminate()
        out, err = first.communicate(timeout=600)
    finally:
        first.kill()
    step = state_of(run)["step"]
    assert first.returncode != 0 and step >= 1
    assert out.count(f"stopped by a signal at step {step:,}; everything is saved. The same command goes on from here.") == 1
    ends = ["--epochs", str(step // 2 + 2)]
    second = torchrun("-m", "metasdf", "--", *typed, *ends)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    assert err.count("resuming ") == 1 and out.count("done: ") == 1 and f"at step {step:,} " in err
    assert [row["step"] for row in lines_of(run)] == [(step // 2 + 2) * 2]
    alone = CliRunner().invoke(cli, [*command(store, run), *ends])
    assert alone.exit_code == 0 and "has reached its end already" in alone.output


FAIL_ONE = """
import os
from metasdf import cli
from metasdf.data.loader import Loader
from metasdf.errors import InputError

batch = Loader.batch

def fail(self, step):
    if step == 3 and os.environ["RANK"] == "1":
        raise InputError("a shape cannot be read", where="shape 5")
    return batch(self, step)

Loader.batch = fail
cli.main()
"""


def test_an_error_of_one_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text(FAIL_ONE)
    store = write_circles(tmp_path / "store")
    started = time.monotonic()
    pair = torchrun(script, "--", *command(store, tmp_path / "run"))
    out, err = pair.communicate(timeout=600)
    assert pair.returncode == 1 and "done" not in out
    assert "error (process 1): a shape cannot be read\n  where: shape 5" in err
    assert time.monotonic() - started < distributed.TIMEOUT.total_seconds()  # nobody waited for the lost one
    assert state_of(tmp_path / "run")["step"] >= 0  # a run that can go on


# -- one process ---------------------------------------------------------------------------------------------------------------------------


def test_one_process_exchanges_nothing() -> None:
    alone, tensor = Group(), torch.tensor([1.5])
    assert alone.main and (alone.rank, alone.size) == (0, 1)
    alone.sum([tensor])
    alone.share([tensor])
    assert tensor.item() == 1.5 and alone.agree(3.5, -1) == (3.5, -1) and alone.differing("text") == []


@pytest.mark.parametrize("size", [None, "1", ""])
def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch, size: str | None) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with processes(CPU) as group:
        assert group == Group() and not torch.distributed.is_initialized()
    assert own_device("auto") == "auto" and own_device("cuda") == "cuda"


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device("auto") == "auto"
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:3", "cuda:1", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("auto") == "auto"


def test_processes_that_nobody_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but the processes did not find each other") as caught, processes(CPU):
        pass
    assert "RANK" in caught.value.cause and "torchrun" in caught.value.fix
    with pytest.raises(UsageError, match="several processes cannot train on mps"), processes(torch.device("mps")):
        pass


@pytest.mark.parametrize(
    ("omp", "threads", "expected"), [(None, None, 4), ("1", None, 4), ("3", None, None), ("1", 2, None)], ids=["unset", "torchrun", "user", "option"]
)
def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch, omp: str | None, threads: int | None, expected: int | None) -> None:
    """torchrun sets OMP_NUM_THREADS=1 where nothing is set; any other number is the user's."""
    calls: list[int] = []
    for name, value in {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": omp}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_cores", lambda: 13)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no further")))
    with pytest.raises(UsageError, match="did not find each other"), processes(CPU, threads=threads):
        pass
    assert calls == ([] if expected is None else [expected])


def test_a_process_that_lost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed.dist, "all_reduce", closed)
    with pytest.raises(TrainingError, match="process 1 of 3 lost the others") as caught:
        Group(1, 3).agree(1.0)
    assert caught.value.cause and caught.value.fix


def test_parts_of_a_batch_are_the_batch(tmp_path: Path) -> None:
    store = write_circles(tmp_path / "store")

    def batches(rank: int, ranks: int) -> list[Any]:
        loader = Loader(store, indices=store.split("train"), rule="levelset", n_context=20, n_query=20, batch=5, seed=0, rank=rank, ranks=ranks)
        return [loader.batch(step) for step in range(3)]

    whole = batches(0, 1)
    for ranks in (2, 3, 5):
        for one, *parts in zip(whole, *(batches(rank, ranks) for rank in range(ranks)), strict=True):
            assert {len(part.task) for part in parts} <= {5 // ranks, 5 // ranks + 1}
            for pick in (lambda b: b.task, lambda b: b.context.x, lambda b: b.context.y, lambda b: b.query.x, lambda b: b.query.y):
                assert torch.equal(torch.cat([pick(part) for part in parts]), pick(one))
    with pytest.raises(UsageError, match="6 processes share a batch of 5 shapes") as caught:
        batches(0, 6)
    assert "at most 5 processes" in caught.value.fix


def test_the_other_processes_are_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a group of one is the plain trainer."""
    store = write_circles(tmp_path / "store")
    for name, group in (("plain", {}), ("group", {"group": Group()})):
        Trainer(tiny(), store, tmp_path / name, Limit(None, 2), Quiet(), CPU, pictures=False, **group).fit()  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
    assert_same_bits(tmp_path / "plain", tmp_path / "group")


if __name__ == "__main__":
    take_part(Path(sys.argv[1]))
