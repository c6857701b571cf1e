"""What a command does first, before imports that take seconds: Ctrl-C, warnings, its end.

`gpt1_ds` and `data_prep` call `begin` before anything else, and this file imports what Python has
imported anyway: until `begin`, Ctrl-C ends in a traceback.
"""

import atexit
import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

PACKAGES = ("gpt1_ds", "data_prep")
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Variables with the number of a rank."""
exit_code: int | None = None
"""Of this command, once `errors.guard` knows it."""
FOR_USERS = r"(?s).*(CUDA|NVIDIA|GPU)"
"""What a warning of torch speaks of that a user can mend: a driver, a device."""


def begin() -> None:
    """Let Ctrl-C end this command with one line, and silence warnings that a user cannot act on.

    It does nothing where the packages are used as a library.
    """
    if not _is_command():
        return
    atexit.register(_end)  # the first function to be registered is the last to be called
    # Imports make half a million objects that stay. To look through them takes 0.2 s: so nothing
    # does until `errors.guard`, nor later.
    gc.disable()
    # A shell script starts commands in the background with Ctrl-C ignored. That stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted_early)
        sys.unraisablehook = _interrupt_again
    # read by torch's C++ code, which writes a stack of calls when a peer is gone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", FOR_USERS, UserWarning)
        warnings.showwarning = _show_warning


def _is_command() -> bool:
    words = sys.orig_argv
    if "-m" in words:
        return "".join(words[words.index("-m") + 1 :][:1]).split(".")[0] in PACKAGES
    script = os.path.abspath(sys.argv[0] if sys.argv else "")
    folder, name = os.path.split(script)
    return name.startswith("gpt1-") or os.path.basename(folder) in PACKAGES


def _end() -> None:
    """End this process before Python takes itself down, if threads are left.

    Python 3.11 to 3.13 unwinds a thread that comes back from C++ (a store, an operator of torch)
    later than that. C++ does not allow it, and ends the process by SIGABRT: a run that had done all
    its steps would have failed. MPI must be finalized after this, and there are no threads.
    """
    import threading

    if exit_code is None or threading.active_count() == 1 or "mpi4py.MPI" in sys.modules:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(exit_code)


def interrupted_early(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of Ctrl-C until `errors.guard` begins. Rank 0 speaks for all ranks."""
    if all(os.environ.get(name, "0") in ("", "0") for name in RANKS):
        try:
            os.write(2, b"stopped: interrupted before it began; nothing has changed\n")
        except OSError:
            pass
    os._exit(INTERRUPTED)


def _interrupt_again(fault: "sys.UnraisableHookArgs") -> None:
    """Python prints and forgets a Ctrl-C that comes while it frees an object: repeat it."""
    if fault.exc_type is KeyboardInterrupt:
        import _thread
        import threading

        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(fault)


def _show_warning(message: Warning | str, *place: object, **more: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
