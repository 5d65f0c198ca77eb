"""SIGTERM and Ctrl-C, heard while the main thread is inside a TensorFlow loop."""

import os
import signal
import threading

import tensorflow as tf


class Interrupted(BaseException):
    """A signal asked the run to end; `signum` tells which."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruption:
    """A context in which SIGTERM and SIGINT set `flag`, which a graph reads at every step.

    Python runs signal handlers between two of its own instructions, so not before a loop in the
    graph is over. The byte that the interpreter writes to its wake-up descriptor comes at once; a
    thread waits for it. Outside of Python's main thread this context does nothing.

    Attributes:
        flag: bool tf.Variable on the host.
        signum: the signal that came, or None.
        raises: set it while Python code runs that may be broken off: a signal then raises
            Interrupted there.
    """

    def __init__(self):
        with tf.device("CPU:0"):
            self.flag = tf.Variable(False, trainable=False)
        self.signum, self.raises = None, False

    def __enter__(self):
        self.flag.assign(False)
        self.signum, self.raises, self._handlers = None, False, {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_):
        if not self._handlers:
            return
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: not set from Python
        signal.set_wakeup_fd(self._old_wakeup)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _listen(self):
        while byte := os.read(self._reader, 1)[0]:
            if byte in (signal.SIGTERM, signal.SIGINT):
                self.signum = byte
                self.flag.assign(True)

    def _handle(self, signum, _):
        self.signum = signum
        if self.raises:
            raise Interrupted(signum)
