"""What goes wrong while clients work: with the source, with the network to it, with the gateway's configuration.

Invariant: each fault ends before the next begins, and everything is as before when it has ended.
"""

import signal
import subprocess
import sys

from soak_parts import network


class Network:
    """The fault proxy as a process; `port` is where the gateway finds its source."""

    def __init__(self, stack, target):
        self.process = subprocess.Popen([sys.executable, network.__file__, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(self._end)
        self.port = int(self.process.stdout.readline())

    def _end(self):
        # It ends with its input.
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __call__(self, mode):
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()


class Faults:
    """All kinds by name; each is a function of a clock's `wait(seconds)` and a source of chance."""

    def __init__(self, pg, network_between, gateway, rewrite):
        self.pg, self.network, self.gateway, self.rewrite = pg, network_between, gateway, rewrite
        self.kinds = {"every backend terminated": self.terminate, "one backend terminated": self.terminate_one,
                      "source killed -9 and restarted": self.kill, "source frozen": self.freeze, "SIGHUP to the gateway": self.hang_up,
                      "configuration changed, SIGHUP": self.reload, "network cut": self.cut, "network stalled": self.stall,
                      "network slow": self.slow, "messages split": self.split}
        # Not a fault to be survived.
        self.lie = lambda wait, chance: self._network("lie", wait, 2)

    def terminate(self, wait, chance):
        self.pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")

    def terminate_one(self, wait, chance):
        for _ in range(5):
            self.pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
                        "ORDER BY random() LIMIT 1")
            wait(0.2)

    def kill(self, wait, chance):
        self.pg.crash()
        wait(chance.uniform(0, 2))
        self.pg.launch()

    def freeze(self, wait, chance):
        self.pg.signal(signal.SIGSTOP)
        try:
            wait(chance.uniform(0.2, 5))
        finally:
            # Those that it started before it stopped are among its children still.
            self.pg.signal(signal.SIGCONT)

    def hang_up(self, wait, chance):
        for _ in range(3):
            self.gateway.process.send_signal(signal.SIGHUP)
            wait(0.1)

    def reload(self, wait, chance):
        self.rewrite(chance.randint(20, 120))
        self.gateway.process.send_signal(signal.SIGHUP)

    def _network(self, mode, wait, seconds):
        self.network(mode)
        try:
            wait(seconds)
        finally:
            self.network("pass")

    def cut(self, wait, chance):
        self._network("cut", wait, chance.uniform(0, 2))

    def stall(self, wait, chance):
        self._network("stall", wait, chance.uniform(0.2, 4))

    def slow(self, wait, chance):
        self._network("slow", wait, chance.uniform(1, 4))

    def split(self, wait, chance):
        self._network("split", wait, chance.uniform(1, 4))
