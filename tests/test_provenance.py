import subprocess
import sys

import torch

from sciml_monarch import provenance as module
from sciml_monarch.provenance import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_names_command_and_versions(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/benchmark.py", "--only", "two words"])
    found = provenance(torch.device("cpu"))
    assert found["command"] == "benchmark.py --only 'two words'"
    assert found["torch"] == torch.__version__
    assert found["version"]
    assert found["device"].startswith("cpu")


def committed(folder, name):
    git(folder, "init", "-q")
    git(folder, "add", name)
    git(folder, "commit", "-qm", "one")


def test_commit_of_a_source_tree_and_of_none(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("1")
    assert module._commit(file) is None
    committed(tmp_path, "a.py")
    commit = module._commit(file)
    assert len(commit) == 12
    (tmp_path / "notes.txt").write_text("of no consequence")
    assert module._commit(file) == commit
    (tmp_path / "part").mkdir()
    (tmp_path / "part/b.py").write_text("a module that the commit lacks")
    assert module._commit(file) == commit + "+changes"
    (tmp_path / "part/b.py").unlink()
    file.write_text("2")
    assert module._commit(file) == commit + "+changes"


def test_a_package_in_an_ignored_folder_of_a_repository_is_not_of_its_commit(tmp_path, monkeypatch):
    (tmp_path / ".gitignore").write_text("venv")
    committed(tmp_path, ".gitignore")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/a.py").write_text("1")
    assert module._commit(tmp_path / "venv/a.py") is None
    monkeypatch.setenv("SCIML_MONARCH_COMMIT", "0123456789ab")
    assert module._commit(tmp_path / "venv/a.py") == "0123456789ab"


def test_a_machine_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._commit(tmp_path / "a.py") is None
    monkeypatch.setenv("SCIML_MONARCH_COMMIT", "0123456789ab")
    assert module._commit(tmp_path / "a.py") == "0123456789ab"
