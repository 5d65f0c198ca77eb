"""What the user sees of a run: progress lines, one-line errors, and no third-party log noise.

This module imports nothing of ours and no TensorFlow, so any module may use it.
"""

import contextlib
import importlib
import logging
import math
import os
import re
import sys
import textwrap
import time
import warnings

# Packages that Keras and TensorFlow import if they are installed, for features unused here.
UNASKED = ("PIL", "cv2", "jax", "matplotlib", "pandas", "sklearn")
# What absl and ml_collections say of flags, and what it means.
_CLEARER = {
    r"^flag (--\S+)=None: .* other than None\.$": r"\1 is required.",
    r"\('Non-boolean argument to boolean flag', (.*)\)$": r"\1 is neither true nor false",
    r"invalid literal for int\(\) with base 10: (.*)$": r"\1 is no whole number",
    r"could not convert string to float: (.*)$": r"\1 is no number",
    r"^'(\w+)' Did you mean \"(\w+)\" .*$": r"a config has no '\1'; did you mean '\2'?",
}
_REPEATED = re.compile(r";\s+repeat this option to specify a list of values$")  # absl's addition
HELP = ("help", "helpshort", "helpfull", "helpxml", "h", "?")


class UserError(ValueError):
    """A mistake of the user's. The message says in one line what is wrong and what to do."""


def quiet_logs():
    """Keeps the log lines of TensorFlow, absl and friends out of the terminal.

    Call before TensorFlow is imported; `TF_CPP_MIN_LOG_LEVEL=0` in the environment brings them
    back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
        return
    from absl import logging as absl_logging

    warnings.filterwarnings("ignore")
    # By absl's own setting: TensorFlow sets the level back to that after a SavedModel is saved.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_stderr():
    """Drops what libraries in C++ write to the process's standard error within it, whatever levels.

    For programs that are doing one thing: what other threads write there is dropped as well.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def load_tensorflow(*others):
    """Imports TensorFlow, Keras and the packages `others` without the packages of `UNASKED`.

    For programs: it halves the time they take to start. Keras then has no wrappers for
    scikit-learn, takes no pandas frames and reads no images; these packages can be imported later
    as usual.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    with without(*UNASKED):
        for name in ("tensorflow", "keras", *others):
            importlib.import_module(name)


@contextlib.contextmanager
def without(*packages):
    """Within it, what is imported finds none of `packages`, unless they are loaded already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: as if it were not installed
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def call(module, name, *args):
    """Calls `module.name(*args)` after `load_tensorflow`: a new process, before it loads more."""
    load_tensorflow()
    return getattr(importlib.import_module(module), name)(*args)


def run(main, details=None):
    """Runs `main(argv)` under absl's flags; a `UserError` or `OSError` ends it in one clear line.

    Exit status: 0 on success and for --help, 1 on a user error, 2 on a bad flag, 130 on Ctrl-C. Any
    other exception is a defect of ours and keeps its traceback.

    Args:
        main: of the program.
        details: arguments -> further lines of its --help.
    """
    from absl import app

    def guarded(argv):
        quiet_logs()
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; flags look like --name=value.")
        main(argv)

    try:
        app.run(guarded, flags_parser=lambda argv: _parse(argv, details))
    except BrokenPipeError:  # what reads the output has enough
        os._exit(0)  # since Python would complain of it once more
    except (UserError, OSError) as error:
        fail(sys.argv, error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _packaged(argument):
    """`--config=configs/x.py` of the installed package, where there is no such file here."""
    found = re.fullmatch(r"(--?config=)?(configs/\w+\.py)(:.*)?", argument)
    if not found or os.path.exists(found[2]):
        return argument
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), found[2])
    return f"{found[1] or ''}{path}{found[3] or ''}" if os.path.exists(path) else argument


def _parse(argv, details):
    """What absl's flags leave of the arguments; ends the program for --help and on a bad flag."""
    from absl import flags

    # Shells leave the ~ of --flag=~/folder as it is.
    home = os.path.expanduser("~")
    argv = [re.sub(r"^(--[\w.]+=)~(?=/|$)", lambda m: m[1] + home, arg) for arg in argv]
    argv = [re.sub(r"^--?grid\.", "--grid=", arg) for arg in argv]
    argv = [_packaged(argument) for argument in argv]
    asked = [arg for arg in argv[1:] if arg.lstrip("-") in HELP and arg.startswith("-")]
    try:
        if asked:
            _show_help(argv, details, asked[0].lstrip("-"))
            sys.exit(0)
        left = flags.FLAGS(argv)
        for name, flag in flags.FLAGS.flag_values_dict().items():
            if isinstance(flag, float) and math.isnan(flag):  # which no bound keeps out
                raise UserError(f"flag --{name}=nan: 'nan' is no number")
        return left
    except (flags.Error, UserError) as error:
        fail(argv, error, 2)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections reports an unknown config key or a value of the wrong type so.
        fail(argv, error, 2)


def _show_help(argv, details, kind):
    if kind == "helpxml":
        from absl import flags

        flags.FLAGS.write_help_in_xml_format(sys.stdout)
    else:
        print("\n".join(_help(argv, details, full=kind == "helpfull")))


def _help(argv, details, full):
    """Lines of --help: usage, the program's docstring, its flags, `details`."""
    from absl import flags

    modules = flags.FLAGS.flags_by_module_dict()
    ours = [m for m in modules if m == argv[0] or m.split(".")[0] in ("convbert_tf", "tools")]
    own = sorted((flag for m in ours for flag in modules[m]), key=lambda flag: flag.name)
    needed = [f"--{flag.name}=..." for flag in own if _is_required(flag)]
    yield " ".join([f"Usage: python {argv[0]}", *needed, "[--flag=value ...]"])
    yield f"\n{(sys.modules['__main__'].__doc__ or '').strip()}\n\nFlags:"
    for flag in own:
        default = flag.default_as_str.strip("'") if flag.default is not None else ""
        note = "required" if _is_required(flag) else f"default: {default}" if default else ""
        values = f"={'|'.join(flag.parser.enum_values)}" if flag.flag_type() == "enum" else ""
        yield f"  --{'[no]' * flag.boolean}{flag.name}{values}" + (f"  ({note})" if note else "")
        yield indented(_REPEATED.sub("", flag.help or ""))
    yield "  --help, --helpfull"
    yield indented("This text; --helpfull: with the flags of the libraries.")
    yield from ("", *details(argv[1:])) if details else ()
    if full:
        yield "\nFlags of the libraries:"
        for module in sorted(set(modules) - set(ours)):
            yield flags.FLAGS.module_help(module)


def indented(text):
    """The lines of a flag's meaning in --help."""
    return textwrap.fill(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _is_required(flag):
    return any("other than None" in (check.message or "") for check in flag.validators)


def fail(argv, error, status):
    """Ends the program with `error` in one line."""
    message = " ".join(_text(error).split())
    if status == 2:
        for pattern, clearer in _CLEARER.items():
            message = re.sub(pattern, clearer, message)
    print(f"{os.path.basename(argv[0])}: error: {message}", file=sys.stderr, flush=True)
    # Not sys.exit: absl and TensorFlow threads must not hold up, or add to, the one line.
    sys.stdout.flush()
    os._exit(status)


def _text(error):
    """The error's message: a KeyError's own text is its message quoted, also inside others."""
    inner = error.args[0] if error.args else ""
    if isinstance(error, KeyError) or isinstance(inner, KeyError):
        return _text(inner) if isinstance(inner, Exception) else str(inner)
    return str(error)


def reason(error):
    """The message of a library's error on one line, without TensorFlow's names of nodes and ops."""
    message = re.sub(r"\{\{.*?\}\}|\[Op:\w*\]", "", str(getattr(error, "message", error)))
    return " ".join(message.split())[:300]


def say(message):
    """Prints `message` as a line, without delay."""
    print(message, flush=True)


def counted(number, noun):
    """'1 row', '2,000 rows'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def usable_cores():
    """Cores that this process may use; where the system does not say (macOS), all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_bfloat16_units():
    """Whether the processor says so; where there is no /proc/cpuinfo, False."""
    if not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return bool({"avx512_bf16", "amx_bf16"} & set(file.read().split()))


def duration(seconds):
    """`seconds` as people write it: '8 s', '3 min 20 s', '2 h 05 min', '4 d 3 h'."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


class Progress:
    """A progress line with rate and time left, at most one every `every` seconds.

    On a terminal the line is rewritten in place; in a log each is a line of its own.

    Example: `progress = Progress("records", total=5_000_000, unit="B")`, then
    `progress.update(done, note="12,000 records")` as often as one likes, then
    `progress.close()`.
    """

    def __init__(self, label, total=None, unit="", start=0, every=5.0, stream=None):
        self.label, self.total, self.unit = label, total, unit
        self._stream = stream or sys.stdout
        self._rewrite = self._stream.isatty()
        self._every = 0.5 if self._rewrite else every
        self._start, self._done, self._note = start, start, ""
        self._began = self._last = time.monotonic()

    @property
    def rate(self):
        """Units a second since the beginning."""
        return (self._done - self._start) / max(time.monotonic() - self._began, 1e-9)

    def update(self, done, note=""):
        """Sets the number of units done so far; prints a line when one is due."""
        self._done, self._note = done, note
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._print(end="" if self._rewrite else "\n")

    def close(self, note=None):
        """Prints the last line, always."""
        self._note = self._note if note is None else note
        self._print(end="\n", closing=True)

    def _print(self, end, closing=False):
        count = _quantity(self._done, self.unit)
        if self.total:
            share = f"({100 * self._done / self.total:.0f}%)"
            count = f"{_quantity(self._done)} of {_quantity(self.total, self.unit)} {share}"
            if self.unit == "B":
                count = f"{self._done / 1e6:.1f} of {_quantity(self.total, 'B')} {share}"
        parts = [f"{self.label}: {count}", f"{_quantity(self.rate, self.unit)}/s"]
        if closing:
            parts.append(f"took {duration(time.monotonic() - self._began)}")
        elif self.total and self.rate:
            parts.append(f"{duration(max(self.total - self._done, 0) / self.rate)} left")
        parts += [self._note] if self._note else []
        start = "\r\x1b[K" if self._rewrite else ""
        print(start + "  ".join(parts), end=end, file=self._stream, flush=True)


def _quantity(value, unit=""):
    if unit == "B":
        return f"{value / 1e6:.1f} MB"
    shown = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"
    return f"{shown} {unit}".rstrip()
