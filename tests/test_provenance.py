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


def test_commit_of_a_source_tree_and_of_none(tmp_path):
    assert module._commit(tmp_path) is None
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    commit = module._commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "a.py").write_text("2")
    assert module._commit(tmp_path) == commit + "+changes"


def test_a_machine_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._commit(tmp_path) is None
    monkeypatch.setenv("SCIML_MONARCH_COMMIT", "0123456789ab")
    assert module._commit(tmp_path) == "0123456789ab"
