"""Prompts and demonstrations for the demonstration run, put together from words.

They are not real data and say so: openings of film reviews, and one or two short sentences that end them. As many
praise as complain, so that imitation teaches how long an answer is, and leaves what it says open. Where an opening
stands and how it ends depends on its own words only: another phrase in the lists changes no other text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from hashlib import blake2b

_WHEN = """Last night|On a rainy Sunday|After a long day at work|With my family|Years ago|On the plane
One evening in May|For the third time|Without knowing the book|Because a friend asked me to|At a small festival
On an old tape|During the holidays|With low expectations|Out of curiosity|At the cinema"""
_WHAT = """I watched this film|I saw this movie|we saw this old western|I sat through this comedy
we picked this thriller|I tried this war film|we rented this horror movie|I finally saw this drama
we watched this cartoon|I found this remake"""
_THEN = """and the acting|and the plot|and the ending|and the music|and the script|and the first half|and the dialogue
and the main character|and the director's style|and the camera work|and to be honest it|and all in all it
and the whole story|and every scene"""
_PRAISE = """great|wonderful|good|beautiful|excellent|brilliant|funny|charming|fantastic|superb|lovely|perfect|amazing
impressive|enjoyable|nice|fine|terrific|interesting|pleasant"""
_COMPLAINT = """bad|boring|terrible|stupid|awful|slow|poor|weak|dull|horrible|ridiculous|lame|ugly|annoying|predictable
cheap|disappointing|confusing|sad|wasted"""
_PLAIN = """long|strange|quiet|simple|loud|short|dark|old|different|serious|busy|plain|foreign|modern|heavy|odd"""
_VERBS = "was|is|felt|seemed|looked"
_THINGS = "the acting|the music|the ending|the story|the cast|the script|the rest|the humour"
_AFTERWARDS = """I watched it to the end.|We talked about it for days.|I fell asleep.|We left early.|I laughed twice.
I would see it again.|We did not expect that.|My brother slept.|I told my friends.|We stayed for the credits."""


def prompts() -> list[str]:
    """All openings, in an order that looks random and never changes."""
    texts = [f"{when} {what} {then}" for when in _list(_WHEN) for what in _list(_WHAT) for then in _list(_THEN)]
    return sorted(texts, key=lambda text: blake2b(text.encode()).digest())


def demonstrations(openings: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(prompt, completion) for each opening; the same every time."""
    for prompt in openings:
        yield prompt, _ending(random.Random(prompt))


def _ending(draw: random.Random) -> str:
    """One of four forms of ending, with words that praise, complain or do neither."""

    def quality() -> str:
        return draw.choice(_list(draw.choice((_PRAISE, _COMPLAINT, _PLAIN))))

    verb, other = draw.choice(_list(_VERBS)), draw.choice(_list(_VERBS))
    form = draw.randrange(4)
    if form == 0:
        return f" {verb} {quality()}."
    if form == 1:
        return f" {verb} {quality()} and {quality()}."
    if form == 2:
        return f" {verb} {quality()}, but {draw.choice(_list(_THINGS))} {other} {quality()}."
    return f" {verb} {quality()}. {draw.choice(_list(_AFTERWARDS))}"


def _list(words: str) -> list[str]:
    return words.replace("\n", "|").split("|")
