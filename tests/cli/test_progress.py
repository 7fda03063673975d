"""What a person sees of a long command, on a terminal and in a log."""

from multispin.cli.progress import LINE_PERIOD_S, QUIET_S, ProgressLines, progress, stage


class Log:
    """Lines of progress under a clock that the test moves."""

    def __init__(self):
        self.now_s, self.lines = 100.0, []
        self.show = ProgressLines(lambda: self.now_s, self.lines.append)

    def at(self, now_s, *shown):
        self.now_s = 100.0 + now_s
        self.show(*shown)
        return self.lines


def test_a_short_stage_is_not_told_of():
    log = Log()
    log.at(0.0, "planning", 0, 4)
    assert log.at(QUIET_S - 0.1, "planning", 4, 4) == []


def test_a_long_stage_is_told_of_now_and_then_with_the_time_left_and_at_its_end():
    log = Log()
    log.at(0.0, "planning", 0, 10)
    assert log.at(1.0, "planning", 1, 10) == []
    assert log.at(2.0, "planning", 2, 10, "loss 0.5") == ["planning 20%: loss 0.5, 8 s left"]
    assert len(log.at(2.0 + LINE_PERIOD_S - 0.1, "planning", 6, 10)) == 1
    assert log.at(8.0, "planning", 8, 10)[1:] == ["planning 80%, 2 s left"]
    assert log.at(8.1, "planning", 10, 10)[2:] == ["planning 100%"]


def test_each_stage_has_a_time_of_its_own():
    log = Log()
    log.at(0.0, "reading", 0, 2)
    log.at(30.0, "training", 5, 10)
    assert log.at(32.0, "training", 6, 10) == ["training 60%, 8 s left"]


def test_off_a_terminal_nothing_is_said_of_what_is_over_at_once(capsys):
    with progress() as show, stage(show, "loading"):
        show("planning", 1, 1)
    assert capsys.readouterr() == ("", "")
