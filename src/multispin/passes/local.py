"""Passes and devices in one process, with a clock that the caller sets: the driver of tests and examples.

It opens no sockets and never waits. Every message arrives at once, and a verification takes a given time.
"""

from multispin.passes.loop import Passes
from multispin.passes.steps import DraftHere, RoundReport, Send, Sleep, Step, Verify
from multispin.protocol import DeviceSession, Downlink, Uplink


class LocalDriver:
    """Drives passes and device sessions in one process.

    Attributes:
        passes: sessions and passes of the edge.
        devices: the devices' halves of their sessions, by session number.
        reports: reports of the rounds that have ended, the newest last.
        now_s: the clock [s]; the caller sets it.
        verify_s: reported time of a verification [s].
        draft_s: reported time of the edge drafter's drafts [s].

    Args:
        passes: sessions and passes of the edge.
        verify_s: reported time of a verification [s]; default 0.1.
        draft_s: reported time of the edge drafter's drafts [s]; default 0.01.

    """

    def __init__(self, passes: Passes, verify_s: float = 0.1, draft_s: float = 0.01) -> None:
        self.passes = passes
        self.devices: dict[int, DeviceSession] = {}
        self.reports: list[RoundReport] = []
        self.now_s = 0.0
        self.verify_s = verify_s
        self.draft_s = draft_s

    def connect(self, device: DeviceSession, origin: str = "") -> int:
        """Connect a device, for the first time or again; returns its session's number.

        Args:
            device: the device's half of the session.
            origin: whom a new session counts as (`Limits.max_share`); default nobody.
        """
        number, answers = self.passes.connect(device.greet(), self.now_s, origin)
        self.devices[number] = device
        for answer in answers:
            self.hear(number, answer)
        return number

    def lose(self, number: int) -> None:
        """Break a device's connection; the caller may keep its session and connect it again."""
        self.passes.disconnect(number, self.now_s)
        self.devices.pop(number).lose()

    def say(self, number: int, message: Uplink) -> None:
        """Send a device's message in a frame of 40 bytes, and deliver the immediate answers."""
        for answer in self.passes.receive(number, message, 40, self.now_s):
            self.hear(number, answer)

    def hear(self, number: int, message: Downlink) -> None:
        """Deliver a message to its device, if it is connected."""
        if number in self.devices:
            self.devices[number].receive(message)

    def advance(self) -> Step:
        """Make one step. Messages are delivered; a batch is left to the caller."""
        step = self.passes.advance(self.now_s)
        if isinstance(step, Send):
            if step.report is not None:
                self.reports.append(step.report)
            for number, message in step.messages:
                self.deliver(number, message)
        return step

    def deliver(self, number: int, message: Downlink) -> None:
        """Deliver an unsolicited message. A test may override this to lose it."""
        self.hear(number, message)

    def verify(self, step: Verify) -> None:
        """Verify a batch at once."""
        self.passes.verified(step.batch, self.passes.verify(step.batch), self.verify_s, self.now_s)

    def draft_here(self, step: DraftHere) -> None:
        """Let the edge's own drafter draft at once."""
        self.passes.drafted(step, self.passes.draft(step), self.draft_s, self.now_s)

    def run(self) -> Sleep:
        """Make steps until there is nothing to do now."""
        while not isinstance(step := self.advance(), Sleep):
            self.work(step)
        return step

    def one_pass(self) -> RoundReport:
        """Make steps until a pass has ended, and return its report. ValueError if nothing is left to do before."""
        while True:
            match self.advance():
                case Send(_, report) if report is not None:
                    return report
                case Sleep():
                    raise ValueError("no pass can end before a message comes or the clock is advanced")
                case step:
                    self.work(step)

    def work(self, step: Step) -> None:
        """Do a step's work of the engine or of the edge's own drafter."""
        match step:
            case DraftHere():
                self.draft_here(step)
            case Verify():
                self.verify(step)
