"""A target that counts, and a drafter of the edge that nearly does."""

import random

from multispin.speculation import ID_RULES, Score, SlotTable, accept_matching

V = 100


def follows(token):
    return (token + 1) % V


def chain(rng, newest, length, right):
    """Tokens after `newest`, each of them right with some probability."""
    ids = []
    for _ in range(length):
        newest = follows(newest) if rng.random() < right else (newest + 2) % V
        ids.append(newest)
    return ids


class CountingEngine(SlotTable):
    """A target whose next token is the newest plus one, modulo V."""

    joins = True

    def __init__(self, slots):
        super().__init__(slots)
        self.max_length, self.vocabulary_size, self.rules, self.lacks = 400, V, ID_RULES, frozenset()
        self.batches = []

    def verify(self, feeds):
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        self.batches.append([len(feed.tokens) for feed in feeds])
        return [None if feed.params is None else _found(feed) for feed in feeds]


def _found(feed):
    found = accept_matching(feed.draft, [follows(token) for token in feed.tokens[feed.context :]])
    return found if feed.params.logprobs is None else found._replace(scores=(Score(0.0),) * (found.accepted + 1))


class SlotDrafter:
    """What every drafter of the edge has in these tests: slots without end, and nothing left to read."""

    slots = 0

    def open(self):
        self.slots += 1
        return self.slots - 1

    def unread(self, slot, committed):
        return 0


class RandomDrafter(SlotDrafter):
    """The edge's own drafter: right about each token with some probability, and often short."""

    def __init__(self, right, seed=1):
        self.right, self.rng, self.asked = right, random.Random(seed), 0

    def draft(self, asks):
        self.asked += len(asks)
        return [chain(self.rng, ask.committed[-1], self.rng.randint(0, ask.length), self.right) for ask in asks]
