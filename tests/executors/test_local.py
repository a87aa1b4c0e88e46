"""Scripts that workers would run again are refused at once; errors of common kinds say what to do."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from siegebench import executors, sources, worker
from siegebench.cells import Result
from siegebench.errors import ConfigError, ModelError
from siegebench.evaluation import failed
from siegebench.reuse import marked
from siegebench.store import Store
from siegebench.workspace import Settings
from tests.test_store import cell, result

CALL = "from siegebench.worker import check_guarded\n"


def script(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, name: str | None = None) -> None:
    """Run a text as Python runs its main script."""
    path = folder / "script.py"
    path.write_text(CALL + text)
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    if name is not None:
        main.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(path.read_text(), str(path), "exec"), vars(main))


@pytest.mark.parametrize(
    "text",
    [
        'if __name__ == "__main__":\n    check_guarded()\n',
        'def main():\n    check_guarded()\n\nif __name__ == "__main__":\n    main()\n',
        'if "__main__" != __name__:\n    raise SystemExit\ncheck_guarded()\n',
    ],
)
def test_a_guarded_script_may_start_workers(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, text, monkeypatch)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("check_guarded()\n", 2),
        ("def main():\n    check_guarded()\n\nmain()\n", 5),
        ('check_guarded()\nif __name__ == "__main__":\n    pass\n', 2),
    ],
)
def test_a_script_that_workers_would_run_again_is_refused_in_one_line(
    text: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as error:
        script(tmp_path, text, monkeypatch)
    assert str(error.value) == (
        f'{tmp_path / "script.py"}:{line}: how="local" starts processes that run this script again; '
        'put the call under `if __name__ == "__main__":`, or use how="serial"'
    )


def test_modules_run_with_dash_m_and_notebooks_may_start_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "check_guarded()\n", monkeypatch, name="siegebench.__main__")
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec(CALL + "check_guarded()", vars(notebook))


def dies(threads: int, started: object) -> None:
    raise SystemExit(3)


def test_workers_that_never_start_store_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "start", dies)
    monkeypatch.setattr(executors.slots, "MAX_CRASHES", 0)
    with pytest.raises(ConfigError, match="no worker process has started, 1 ended before; nothing was computed"):
        executors.LocalExecutor(1).run([cell()], Settings(root=str(tmp_path)), lambda *_: None)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--slots 1"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--slots 1"),
        (FileNotFoundError(2, "No such file or directory", "a.parquet"), "put it back and run again"),
        (ModuleNotFoundError("No module named 'art'"), "siegebench doctor"),
        (SystemExit(1), "called sys.exit"),
    ],
)
def test_an_error_row_says_what_to_do(error: BaseException, words: str) -> None:
    told = failed(cell(), error).error
    assert told is not None
    assert str(error) in told["message"]
    assert words in told["message"]
    assert told["type"] == type(error).__name__


def test_errors_that_say_it_themselves_stay_as_they_are() -> None:
    for error in (ModelError("w.safetensors: no such file"), ValueError("bad")):
        told = failed(cell(), error).error
        assert told is not None
        assert told["message"] == str(error)


def test_a_dead_worker_is_told_with_what_to_do(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    assert executors.slots._crashed(cell(), settings, 3) == "crashed"
    (row,) = Store(tmp_path).rows()
    assert row.error is not None
    assert "died 3 times" in row.error["message"]
    assert "--slots 1" in row.error["message"]


def test_reports_mark_stale_rows() -> None:
    fgsm = {"name": "fgsm", "version": 1}
    now = sources.of(cell(attack=fgsm))
    fresh = result(cell(attack=fgsm), sources=now)
    old: Result = result(cell(attack=fgsm), sources={**now, "attack": "0" * 16})
    assert marked([fresh]) == [fresh]
    (found,) = marked([old])
    assert [f["id"] for f in found.flags] == ["stale"]
    assert "made by other code of attack fgsm" in found.flags[0]["evidence"]
    assert not old.flags, "the row itself must not change"
