"""The flag --config=FILE of a program, with --config.SECTION.KEY=VALUE to override its values."""

import dataclasses
import difflib
import glob
import importlib.util
import inspect
import os
import re
import sys
import traceback

from convbert_tf import console
from convbert_tf.config.checks import unknown_key
from convbert_tf.config.overrides import from_config_dict, to_config_dict
from convbert_tf.console import UserError


class ConfigFlag:
    """Defines --config for a program; make one at the top of its module.

    Args:
        example: an experiment of the class that the program takes, with its defaults.
        meaning: of the flag, for --help.
        flag_values: absl.flags.FlagValues that it is defined in; by default the program's.
        required: whether the program cannot do without it.
    """

    def __init__(self, example, meaning, flag_values=None, required=True):
        from absl import flags
        from ml_collections import config_flags

        flag_values = flags.FLAGS if flag_values is None else flag_values
        self._example = example
        try:
            self._holder = config_flags.DEFINE_config_file(
                "config", None, meaning, flag_values=flag_values
            )
        except flags.Error as error:  # it reads the command line's --flagfile at once
            console.fail(sys.argv, error, 2)
        flag_values["config"].parser = _FileParser(type(example))
        if required:
            flags.mark_flag_as_required("config", flag_values)

    def experiment(self):
        """The experiment that the command line describes; None without a --config."""
        if self._holder.value is None:
            return None
        return from_config_dict(type(self._example), self._holder.value)

    def help(self, arguments):
        """Lines on every value of a config: those of the --config among `arguments`, if any."""
        experiment, source, given = self._example, "by default", _given(arguments)
        if given:
            try:
                values = load(given, type(experiment))
                experiment = from_config_dict(type(experiment), values)
            except UserError as error:
                raise UserError(f"flag --config={given}: {error}") from error
            source = f"in {given}"
        yield f"Values of a config, as they are {source}:"
        for name, section in vars(experiment).items():
            yield f"\n  {type(section).__doc__.splitlines()[0]}"
            for field in dataclasses.fields(section):
                value = getattr(section, field.name)
                yield f"  --config.{name}.{field.name}={value}"
                yield console.indented(field.metadata["meaning"])


def _given(arguments):
    """The value of the last --config among `arguments`, or None."""
    values = [re.fullmatch(r"--?config=(.+)", argument) for argument in arguments]
    values = [match[1] for match in values if match]
    apart = zip(arguments, arguments[1:], strict=False)
    values += [value for name, value in apart if name in ("--config", "-config")]
    return values[-1] if values else None


class _FileParser:
    """Parses the value of --config as absl's flags do."""

    syntactic_help = ""

    def __init__(self, cls):
        self._class = cls

    def parse(self, argument):
        values = load(argument, self._class)
        for each in sys.argv[1:]:  # ml_collections would name one near key alone
            found = re.match(r"--?config\.(\w+)\.(\w+)", each)
            if found and found[1] in values and found[2] not in values[found[1]]:
                raise unknown_key(found[2], values[found[1]], found[1])
        values.lock()
        return values

    def flag_type(self):
        return "config file"

    def _custom_xml_dom_elements(self, doc):  # for absl's --helpxml
        return []


def load(argument, cls):
    """The ConfigDict of a config file, "FILE" or "FILE:NAME", for experiments of class `cls`.

    Raises:
        UserError: the file is not there or no config of `cls`, or its get_config() fails. The
            message does not name the file.
    """
    path, colon, name = argument.partition(":")
    get_config = getattr(_module(path), "get_config", None)
    if not callable(get_config):
        raise UserError("it has no function get_config().")
    try:
        inspect.signature(get_config).bind(*[name] * bool(colon))
    except TypeError:
        what = "takes nothing after a colon" if colon else "needs a name after a colon"
        raise UserError(f"it {what}.") from None
    values = _run(path, get_config, *[name] * bool(colon))
    if dataclasses.is_dataclass(values):
        values = to_config_dict(values)
    if not hasattr(values, "to_dict") or not hasattr(values, "lock"):
        raise UserError(
            f"its get_config() returns a {type(values).__name__}; it is to return what "
            "config.to_config_dict(experiment) does."
        )
    theirs, ours = set(values), {field.name for field in dataclasses.fields(cls)}
    if theirs - ours:
        raise UserError(
            f"it has the sections {', '.join(sorted(theirs))}, but here {', '.join(sorted(ours))} "
            "are needed: it is another program's."
        )
    if not all(hasattr(section, "to_dict") for section in values.values()):
        raise UserError("a config has sections, each with keys and values.")
    return values


def _module(path):
    """The module of the Python file at `path`, which is run."""
    if not path:
        raise UserError("it names no file.")
    if os.path.isdir(path):
        names = _names_in(path)
        raise UserError(f"it is a folder: name a file in it{f', {names}' if names else ''}.")
    if not os.path.exists(path):
        raise UserError(f"there is no such file{_near(path)}")
    if not path.endswith(".py"):
        raise UserError("a config is a Python file, with a name that ends in .py.")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    _run(path, spec.loader.exec_module, module)
    return module


def _run(path, function, *args):
    """Calls the user's own code, of the file at `path`; its errors become one line."""
    try:
        return function(*args)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"line {error.lineno or 1}: {error.msg}.") from error
    except (ValueError, OSError) as error:  # ValueError: by which a config refuses a name
        raise UserError(str(error)) from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [
            frame.lineno
            for frame in frames
            if os.path.exists(frame.filename) and os.path.samefile(frame.filename, path)
        ]
        place = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"{place}{type(error).__name__}: {error}.") from error


def _near(path):
    """What to say of the config files with names like that of `path`, or of all there are."""
    beside = os.path.dirname(path) or "."
    # That of the program's own repository, wherever it is called from.
    ours = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "..", "configs")
    found = {}
    for folder in dict.fromkeys(["configs", os.path.relpath(ours), beside]):
        for file in sorted(glob.glob(os.path.join(glob.escape(folder), "*.py"))):
            found.setdefault(os.path.basename(file), os.path.normpath(file))
    name = os.path.basename(path)
    near = difflib.get_close_matches(name, found, n=3, cutoff=0.7)
    if near := [name] if name in found else near:
        return f"; did you mean {' or '.join(found[name] for name in near)}?"
    folder = os.path.dirname(next(iter(found.values()), ""))
    return f"; in {folder or 'this folder'} there are {_names_in(folder)}." if found else "."


def _names_in(folder):
    paths = glob.glob(os.path.join(glob.escape(folder), "*.py"))
    return ", ".join(sorted(map(os.path.basename, paths)))
