import json

import pytest
import torch

from sciml_monarch import InputError, hub, load, mri, save
from sciml_monarch.mri.description import Description as ScanDescription
from sciml_monarch.mri.description import describe
from sciml_monarch.pde import FNO, Description, MonarchFNO, Surrogate, UNet

DESCRIPTION = Description(
    fields=("vorticity",),
    units=("1/s",),
    grid=(16, 16),
    lengths=(1.0, 1.0),
    dt=1.0,
    n_history=2,
    n_steps=3,
    attributes={"viscosity": 1e-3, "solver": "ifrk4"},
)


def make(net):
    surrogate = Surrogate(net, DESCRIPTION)
    surrogate.set_normalization(torch.tensor([0.5]), torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([2.0]))
    return surrogate.eval()


NETS = {
    "FNO": lambda: FNO(2, 1, 4, (4, 4), n_layers=2),
    "MonarchFNO": lambda: MonarchFNO(2, 1, 4, (4, 4), (16, 16), n_layers=2),
    "UNet": lambda: UNet(2, 1, width=4),
}


@pytest.mark.parametrize("name", NETS)
def test_saved_network_comes_back_whole(name, tmp_path):
    surrogate = make(NETS[name]())
    save(surrogate, tmp_path / "net", results="relative L2 0.1")
    again = load(tmp_path / "net")
    history = torch.randn(2, 2, 1, 16, 16)
    torch.testing.assert_close(again(history), surrogate(history), rtol=0, atol=0)
    assert again.description == DESCRIPTION
    assert type(again.net).__name__ == name
    assert not again.training
    card = (tmp_path / "net/README.md").read_text()
    assert "relative L2 0.1" in card
    assert "| viscosity | 0.001 |" in card


def test_damaged_and_foreign_files_are_named(tmp_path):
    save(make(NETS["MonarchFNO"]()), tmp_path / "net")
    with pytest.raises(InputError, match="no such checkpoint"):
        load(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(InputError, match=r"text\.ckpt: not a checkpoint"):
        load(tmp_path / "text.ckpt")
    torch.save({"sciml_monarch": [1], "state_dict": {}}, tmp_path / "list.ckpt")
    with pytest.raises(InputError, match=r"list\.ckpt: its configuration is not a table"):
        load(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match=r"foreign\.ckpt: a checkpoint of another program"):
        load(tmp_path / "foreign.ckpt")
    weights = (tmp_path / "net/model.safetensors").read_bytes()
    (tmp_path / "net/model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
        load(tmp_path / "net")
    (tmp_path / "net/model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        load(tmp_path / "net")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "PerpetualFNO"}, "PerpetualFNO"),
        ({"net": "rollout"}, "does not know"),
        ({"format": 99}, "format 99"),
        ({"arguments": {"n_mods": 3}}, "n_mods"),
        (
            {
                "arguments": {
                    "in_channels": 2,
                    "out_channels": 1,
                    "width": 6,
                    "n_modes": [4, 4],
                    "grid": [16, 16],
                }
            },
            "weights do not fit",
        ),
    ],
)
def test_configuration_that_does_not_fit_is_refused(change, message, tmp_path):
    save(make(NETS["MonarchFNO"]()), tmp_path / "net")
    file = tmp_path / "net/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "net")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    first = make(NETS["MonarchFNO"]())
    save(first, tmp_path / "net")
    before = {p.name: p.read_bytes() for p in (tmp_path / "net").iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="no space left"):
        save(make(NETS["MonarchFNO"]()), tmp_path / "net")
    assert {p.name: p.read_bytes() for p in (tmp_path / "net").iterdir()} == before


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path):
    save(make(NETS["MonarchFNO"]()), tmp_path / "net")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path / "net")
    assert torch.equal(torch.rand(3), expected)


SCANS = ScanDescription(
    shapes=((64, 48),),
    n_coils=(4, 8),
    mask={"class": "RandomMask", "accelerations": [4.0]},
    acceleration=3.5,
    maps={"source": "espirit", "kernel": 5},
    target="truth",
    n_volumes=2,
    n_slices=30,
    acquisitions=("AXT2",),
)
RECONS = {
    "MonarchISTA": lambda: mri.MonarchISTA(2, 4),
    "MonarchSENSE": lambda: mri.MonarchSENSE((16, 12)),
    "UNet": lambda: mri.UNet(2, 2, magnitude=True),
    "VarNet": lambda: mri.VarNet(1, 2, 2, 2),
    "MonarchVarNet": lambda: mri.MonarchVarNet((16, 12), 1, 2, 2, 2),
    "MoDL": lambda: mri.MoDL(1, 2, 2, 4),
    "MonarchMoDL": lambda: mri.MonarchMoDL((16, 12), 1, 2, 2, 4),
}


def reconstructed(net):
    kspace, maps = (torch.randn(*shape, dtype=torch.complex64) for shape in ((1, 3, 16, 12), (1, 1, 3, 16, 12)))
    mask = torch.ones(1, 1, 1, 12, dtype=torch.bool)
    torch.manual_seed(3)
    with torch.no_grad():
        return net(kspace, mask, maps)


@pytest.mark.parametrize("name", RECONS)
def test_saved_reconstruction_network_comes_back_whole(name, tmp_path):
    net = RECONS[name]().eval()
    describe(net, SCANS)
    save(net, tmp_path / "net", results="PSNR 40 dB")
    again = load(tmp_path / "net")
    assert type(again) is type(net)
    assert not again.training
    assert again.description == SCANS
    torch.manual_seed(0)
    expected = reconstructed(net)
    torch.manual_seed(0)
    torch.testing.assert_close(reconstructed(again), expected, rtol=0, atol=0)
    config = json.loads((tmp_path / "net/config.json").read_text())
    assert config["task"] == "mri"
    card = (tmp_path / "net/README.md").read_text()
    assert "PSNR 40 dB" in card
    assert "| trained on k-space (y x x) | 64 x 48 |" in card
    assert "AXT2" in card
    assert "Not a medical device" in card


def test_a_network_that_was_never_trained_has_no_description(tmp_path):
    save(mri.UNet(2, 1, magnitude=True), tmp_path / "net")
    assert load(tmp_path / "net").description is None


def test_files_of_before_there_were_two_tasks_still_load(tmp_path):
    save(make(NETS["MonarchFNO"]()), tmp_path / "net")
    file = tmp_path / "net/config.json"
    config = json.loads(file.read_text())
    assert config.pop("task") == "pde"
    file.write_text(json.dumps(config))
    assert isinstance(load(tmp_path / "net"), Surrogate)


def test_a_network_of_the_other_task_is_refused(tmp_path):
    save(make(NETS["MonarchFNO"]()), tmp_path / "pde")
    net = mri.UNet(2, 1, magnitude=True)
    save(net, tmp_path / "mri")
    with pytest.raises(InputError, match="holds UNet, an MRI network; a PDE network is needed"):
        hub.load_surrogate(tmp_path / "mri")
    with pytest.raises(InputError, match="holds MonarchFNO, a PDE network; an MRI network is needed"):
        hub.load_recon(tmp_path / "pde")
    file = tmp_path / "mri/config.json"
    for change, message in (
        ({"task": "weather"}, "task 'weather'"),
        ({"net": "MonarchFNO"}, "does not know"),
        ({"arguments": {"chanels": 2}}, "chanels"),
        ({"description": {"shapes": [[1, 2]]}}, "lacks 'n_coils'"),
    ):
        whole = file.read_text()
        file.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(InputError, match=message):
            load(tmp_path / "mri")
        file.write_text(whole)
