"""Files are written whole or not at all, together where they belong together, and readable to whom the umask says."""

import os

import pytest

from sciml_monarch import InputError
from sciml_monarch.files import check_writable, replacing, replacing_all


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_is_up_to_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "scan.nii.gz") as temporary:
            assert temporary.name.startswith(".")
            assert temporary.name.endswith(".nii.gz")
            assert temporary.stat().st_mode & 0o777 == mode  # while it is written, too
            temporary.write_text("a head")
    finally:
        os.umask(before)
    assert (tmp_path / "scan.nii.gz").stat().st_mode & 0o777 == mode


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("earlier")

    def fail():
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "earlier")]


def test_files_that_belong_together_are_replaced_together(tmp_path):
    paths = [tmp_path / "a.h5", tmp_path / "a.png"]
    with replacing_all(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("first")
        assert not any(path.exists() for path in paths)

    def fail():
        with replacing_all(paths) as temporaries:
            temporaries[0].write_text("second")
            raise InputError(f"{temporaries[1]}: is too dark")

    with pytest.raises(InputError, match=rf"^{tmp_path}/a\.png: is too dark$"):
        fail()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.h5": "first", "a.png": "first"}


def test_a_folder_that_is_gone_is_one_line_and_an_absent_input_is_not_mistaken_for_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot be written"), replacing(tmp_path / "link" / "a"):
        pass
    folder = tmp_path / "out"

    def lose():
        with replacing(folder / "a") as temporary:
            temporary.unlink()
            folder.rmdir()

    with pytest.raises(InputError, match=r"out/a: cannot be written \(no such file"):
        lose()
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "b"):
        (tmp_path / "absent").read_text()


def test_a_folder_is_tried_and_nothing_left(tmp_path):
    check_writable(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    check_writable(tmp_path / "kept")
    assert [p.name for p in tmp_path.rglob("*")] == ["kept"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out: nothing can be written there \(not a directory\)"):
        check_writable(tmp_path / "file" / "out")
