"""What a child does before user code begins: it ends with the worker, begins only while the worker holds its lease,
tells of its crash, and keeps its supervisor's signals from the processes that user code forks."""

import faulthandler
import fcntl
import os
import signal
import struct
import threading
import time

# The page of the worker's lease: the life, the end of the lease in nanoseconds of CLOCK_BOOTTIME, and a seal over both.
PAGE = struct.Struct("<QQQ")
SEAL = 0x7570647261667431
F_SETSIG = getattr(fcntl, "F_SETSIG", 10)
# Signals by which processes are asked to end.
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# Exit code of a child that did not begin.
VOID = 121


def end_with(lifeline):
    """Has the kernel kill this process when the other end of the socket is closed, as it is when the worker dies."""
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(lifeline, 1) == b"":
            os._exit(VOID)
    except BlockingIOError:
        pass


def may_begin(page, life):
    """Whether the worker still lives the life in which this was permitted, and holds its lease."""
    for _ in range(1000):
        current, until, seal = PAGE.unpack(os.pread(page, PAGE.size, 0))
        if current ^ until ^ SEAL == seal:
            return current == life and time.clock_gettime_ns(time.CLOCK_BOOTTIME) < until
    return False


def tell_of_crashes():
    """A crash writes the stack of every thread to standard error, and ends the process."""
    # Whatever was set before would be called after the report.
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    faulthandler.enable(2, all_threads=True)


def keep_handlers_from_forks(module):
    """Processes that user code forks do not inherit the handlers of that module: one that cannot be ended by SIGTERM is
    waited for for ever, by multiprocessing.Pool for one."""

    masks = {}

    def hold():
        # One that comes before the handlers are gone would be lost.
        masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)

    def let_go():
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(threading.get_ident()))

    def forget():
        for number in ENDS:
            if getattr(signal.getsignal(number), "__module__", None) == module:
                signal.signal(number, signal.SIG_DFL)
        let_go()

    os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=forget)


class SignalsWithoutCrashes:
    """Stands for the module `signal` where a handler for crashes would be set: Python runs it only after the crash, that
    is never, and the process spins."""

    def __getattr__(self, name):
        return getattr(signal, name)

    @staticmethod
    def signal(number, handler):
        return signal.getsignal(number) if number == signal.SIGSEGV else signal.signal(number, handler)
