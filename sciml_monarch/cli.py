"""The program ``sciml-monarch <job>``: one typed function a job, its signature is the options, its docstring the help.

A mistake of the user's ends in one line on standard error and exit status 2.
"""

import inspect
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

from sciml_monarch.errors import InputError

JOBS = {
    "simulate": "make a Navier-Stokes data set",
    "train": "train a network from a YAML configuration",
    "evaluate": "compare trained PDE networks, or MRI reconstructions, on unseen data",
    "predict": "roll a trained PDE network out from a file",
    "reconstruct": "turn MRI scans into volumes, by a trained network or a classical method",
    "demo": "both tasks on small problems: make data, train, evaluate, report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one job.

    Args:
        arguments: Command line without the program's name; by default ``sys.argv[1:]``.

    Returns:
        Exit status: 0, or 2 after a mistake of the user's, or 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if arguments else 2
    job, rest = arguments[0], arguments[1:]
    if job not in JOBS:
        sys.stderr.write(f"sciml-monarch: there is no job {job!r}; jobs are {', '.join(JOBS)}\n")
        return 2
    return guarded(f"sciml-monarch {job}", lambda: _run(job, rest))


def guarded(name: str, job: Callable[[], object]) -> int:
    """Runs a program so that a mistake of the user's ends in one line on standard error.

    Args:
        name: What the line begins with.
        job: The program.

    Returns:
        Exit status: 0, or 2 after a mistake of the user's, or 130 after Ctrl-C or SIGTERM.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)  # so that a job can stop in a state to resume from
    try:
        job()
    except (InputError, OSError) as error:
        sys.stderr.write(f"{name}: {_one_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _usage() -> str:
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:{width}}  {text}" for name, text in JOBS.items())
    return f"usage: sciml-monarch <job> [options]\n\njobs:\n{jobs}\n\n`sciml-monarch <job> --help` shows its options.\n"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _essence(message: str) -> str:
    """What jsonargparse found wrong: key, reason and value, without what an option could also have been."""
    reason = r"Errors:\s*- (.*?)(?:\s*- Expected a <class 'NoneType'>.*)?\s*Given value type"
    found = re.search(reason, message, re.DOTALL)
    if not found:
        return message
    key = re.match(r'Parser key "[^"]*":', message)
    value = re.search(r"Given value: (.*)", message)
    given = f" Given value: {value[1]}" if value and len(value[1]) < 60 else ""
    return f"{key[0] if key else ''} {found[1]}{given}"


def _run(job: str, arguments: list[str]) -> None:
    if job == "simulate":
        from sciml_monarch.pde.simulate import simulate

        call(simulate, arguments)
    elif job == "train":
        train(arguments)
    elif job == "evaluate":
        evaluate(arguments)
    elif job == "predict":
        from sciml_monarch.pde.predict import predict

        call(predict, arguments, "checkpoint")
    elif job == "reconstruct":
        from sciml_monarch.mri.reconstruct import reconstruct

        call(reconstruct, arguments, "inputs", "+")
    else:
        from sciml_monarch.demo import demo

        call(demo, arguments)


def evaluate(arguments: list[str]) -> None:
    """Compares PDE checkpoints or MRI reconstructions, whichever is given first.

    Args:
        arguments: Command line; it begins with checkpoints, or with folders of reconstructed volumes.

    Raises:
        InputError: As the two evaluations.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        for title, job in (("PDE networks", _evaluate_pde), ("MRI reconstructions", _evaluate_mri)):
            sys.stdout.write(f"\n=== {title} ===\n")
            with suppress(SystemExit):
                job(arguments)
        raise SystemExit(0)
    given = [Path(argument) for argument in takewhile(lambda a: not a.startswith("-"), arguments)]
    # a mistake in a command line with --target is best explained by the evaluation that has this option
    if any(map(_holds_volumes, given)) or any(a.partition("=")[0] == "--target" for a in arguments):
        _evaluate_mri(arguments)
    else:
        _evaluate_pde(arguments)


def _evaluate_pde(arguments: list[str]) -> None:
    from sciml_monarch.pde.evaluate import evaluate

    call(evaluate, arguments, "checkpoints", "+")


def _evaluate_mri(arguments: list[str]) -> None:
    from sciml_monarch.mri.evaluate import evaluate_mri

    call(evaluate_mri, arguments, "predictions", "+")


def _holds_volumes(path: Path) -> bool:
    """Whether this is a reconstructed volume or a folder of such, and not a network."""
    if path.is_dir():
        return not (path / "config.json").exists() and any(p.suffix in (".h5", ".hdf5") for p in path.iterdir())
    return path.is_file() and path.suffix in (".h5", ".hdf5")


def call(
    function: Callable[..., Any],
    arguments: list[str],
    positional: str | None = None,
    nargs: str | None = None,
) -> Any:
    """Calls a typed function with arguments from the command line.

    Args:
        function: Its parameters become options, its docstring their help. All but ``positional`` need defaults or
            are required options.
        arguments: Command line.
        positional: Parameter of type path that is given without a name.
        nargs: ``"+"`` where that parameter is a list.

    Raises:
        InputError: An option is unknown, missing or of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    program = Path(sys.argv[0]).name
    if not program.endswith(".py") or program == "__main__.py":
        program = f"sciml-monarch {function.__name__.removesuffix('_mri')}"
    parser = ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    if positional:
        parser.add_argument(positional, type=Path, nargs=nargs)
    parser.add_function_arguments(function, skip={positional} if positional else None)
    try:
        config = parser.parse_args(_with_flags(function, arguments))
    except ArgumentError as error:
        raise InputError(_essence(str(error))) from None
    except UnicodeDecodeError as error:
        raise _no_text(arguments, error) from None
    config.pop("config", None)
    return function(**instantiate(parser, config).as_dict())


def train(arguments: list[str]) -> None:
    """Trains what a YAML configuration describes; ``--resume`` goes on where an earlier run stopped.

    Args:
        arguments: Command line, for example ``["--config", "configs/navier_stokes/fno.yaml", "--out", "runs/fno"]``.

    Raises:
        InputError: The configuration is wrong, or the run folder is taken.
    """
    import lightning as L
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    import sciml_monarch.mri.data
    import sciml_monarch.mri.task
    import sciml_monarch.pde.data
    import sciml_monarch.pde.task
    import sciml_monarch.sparse_training  # noqa: F401  (their classes become names that a YAML can use)
    from sciml_monarch.training import check_folder, checkpointing, loggers, monitor_of, quiet, run

    quiet()

    class SaveConfig(L.Callback):
        """Writes what runs, with every default, once data and network are known to fit."""

        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.is_global_zero:
                out = cli.config.out
                out.mkdir(parents=True, exist_ok=True)
                config = cli.config.clone()
                del config["resume"], config["overwrite"], config["config"]
                cli.parser.save(config, out / "config.yaml", overwrite=True, skip_validation=True)

    class TrainCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument("--out", type=Path, required=True, help="run folder")
            parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT")
            parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in OUT")
            parser.add_argument(
                "--monitor",
                type=str | None,
                default="auto",
                help="logged value that marks the best checkpoint: auto is val/relative_l2 of a PDE and val/nmse of a "
                "reconstruction, which has val/psnr and val/ssim too; null where nothing is validated",
            )
            parser.set_defaults({"trainer.num_sanity_val_steps": 0})

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            try:
                self.config = parser.parse_args(args)
            except ArgumentError as error:
                raise InputError(_essence(str(error))) from None
            except UnicodeDecodeError as error:
                raise _no_text(arguments, error) from None

        def before_instantiate_classes(self) -> None:
            check_folder(self.config.out, self.config.resume, self.config.overwrite)

        def instantiate_classes(self) -> None:
            # as the parent's, which calls a method that jsonargparse 4.49 has renamed and warns of
            self.config_init = instantiate(self.parser, self.config)
            self.datamodule, self.model = self.config_init.data, self.config_init.model
            try:
                self.trainer = self.instantiate_trainer()
            except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
                raise InputError(str(error)) from None

        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
            out = self.config.out
            monitor = monitor_of(self.model, self.config.monitor)
            self.trainer_defaults = {"callbacks": [SaveConfig(), *checkpointing(out, monitor)]}
            return super().instantiate_trainer(default_root_dir=out, logger=loggers(out), **kwargs)

    cli = TrainCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # checkpoints carry what sciml_monarch.load needs
        parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": "sciml-monarch train"},
        run=False,
        args=_with_base(arguments),
    )
    run(cli.trainer, cli.model, cli.datamodule, cli.config.out, cli.config.resume)


def _with_flags(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Lets a switch stand without a value: ``--overwrite`` for ``--overwrite=true``, whatever comes behind it."""
    switches = {f"--{p.name}" for p in inspect.signature(function).parameters.values() if p.annotation is bool}
    following = [*arguments[1:], "--"]
    return (
        [
            f"{argument}=true" if argument in switches and after.lower() not in _TRUTH_VALUES else argument
            for argument, after in zip(arguments, following, strict=True)
        ]
        if arguments
        else []
    )


_TRUTH_VALUES = ("true", "false", "yes", "no", "1", "0", "on", "off")


def _no_text(arguments: Sequence[str], error: UnicodeDecodeError) -> InputError:
    """What is wrong with a command line of which some file is not text."""
    given = [value for value in (argument.partition("=")[2] or argument for argument in arguments) if "." in value]
    files = [value for value in given if Path(value).is_file() and not _is_text(Path(value))]
    return InputError(f"{files[0] if files else '--config'}: is not a text file, and so no YAML ({error.reason})")


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def instantiate(parser: Any, config: Any) -> Any:
    """Builds the objects of a parsed configuration; a constructor's refusal comes out as it was raised."""
    try:
        return parser.instantiate(config)
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        raise (InputError(str(error)) if cause is None else cause) from None


def _with_base(arguments: list[str]) -> list[str]:
    """Reads ``base.yaml``, from the folder of the first configuration or the one above, before it."""
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config", "-c"):
            file = Path(value or "".join(arguments[i + 1 : i + 2]))
            for folder in (file.parent, file.parent.parent):
                base = folder / "base.yaml"
                if file.is_file() and base.is_file() and file.name != base.name:
                    return [*arguments[:i], "--config", str(base), *arguments[i:]]
    return arguments
