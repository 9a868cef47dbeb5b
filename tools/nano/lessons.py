# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the Thinker learns from: conversations of the world.

    lessons = Lessons(media.Imitated(nano), {"typed": 2, "spoken": 1, …})
    turns, system = lessons.draw(rng)   # for Prompts.lay

Questions are typed or spoken, once or several times, about numbers, words,
switches, a picture or a video; what the media hold is media.py's.
"""
import media
import sound
import world


class Lessons:
    """Draws conversations; `studio` makes their media, `kinds` says how often
    each kind is drawn."""

    def __init__(self, studio, kinds):
        self.studio, self.kinds = studio, kinds

    def draw(self, rng, kind=None):
        """(turns, system text or None)."""
        kind = kind or rng.choices(*zip(*self.kinds.items()))[0]
        turns = getattr(self, "_" + kind)(rng)
        system = None
        if rng.random() < 0.1:
            system = " ".join(
                rng.choice(world.WORDS if rng.random() < 0.5
                           else world.STRANGE)
                for _ in range(rng.randint(1, 10)))
            system = written(rng, system)
        return turns, system

    # --- without sights -------------------------------------------------------

    def _exchanges(self, rng):
        what = rng.random()
        if what < 0.4:
            return world.draw_dialogue(rng)
        if what < 0.65:
            return [drill(rng) for _ in range(rng.randint(1, 4))]
        if what < 0.72:
            return [nearly(rng)]
        return [world.draw_exchange(rng, rng.choices(
            ("switch", "repeat", "spell", "refuse"), (4, 4, 2, 4))[0])
            for _ in range(rng.choice((1, 1, 2, 3)))]

    def _ask(self, rng, question, spoken):
        """A question as a part of a prompt."""
        if spoken:
            return self.studio.sound(rng, question)
        return written(rng, question)

    def _typed(self, rng):
        return [([written(rng, typed(rng, e).question)], e.answer)
                for e in self._exchanges(rng)]

    def _spoken(self, rng):
        exchanges = self._recorded(rng)
        often = 0.5 if rng.random() < 0.2 else 1
        turns = []
        for e in exchanges:
            spoken = rng.random() < often and (
                e.kind != "refuse"
                or sound.UNKNOWN in sound.hear_words(e.question))
            turns.append(([self._ask(rng, e.question, spoken)], e.answer))
        if rng.random() < 0.06:  # nobody says anything
            turns.insert(rng.randint(0, len(turns)),
                         ([self.studio.sound(rng, "", rng.randint(2, 60))],
                          world.REFUSAL))
        return turns

    def _recorded(self, rng):
        """Exchanges of which there are recordings."""
        kind = rng.choices(("sum", "switch", "repeat", "spell", "refuse"),
                           (5, 3, 5, 2, 2))[0]
        ret = [self.studio.spoken(rng, kind)]
        while len(ret) < 4 and rng.random() < 0.45:
            e = None
            if ret[-1].kind in ("sum", "follow") and rng.random() < 0.85:
                c = media.NUMBERS[ret[-1].answer.split(" is ")[1]]
                e = self.studio.follow(rng, c)
            ret.append(e or self.studio.spoken(rng, rng.choices(
                ("sum", "switch", "repeat", "refuse"), (3, 1, 2, 1))[0]))
        return ret

    def _transcribe(self, rng):
        turns = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            words = self.studio.utterance(rng)
            parts = [self.studio.sound(rng, words), written(rng, "transcribe")]
            if rng.random() < 0.2:
                parts.reverse()
            turns.append((parts, words))
        if rng.random() < 0.1:
            turns.insert(rng.randint(0, len(turns)), self._spoken(rng)[0])
        return turns

    # --- with sights ----------------------------------------------------------

    def _sight(self, rng, first, ask):
        """A first question, with a sight, and more questions about it: many,
        because they cost less than the sight."""
        turns, asked = [first], set()
        for _ in range(rng.choice((0, 2, 4, 6, 8, 10))):
            e = ask(rng)
            if rng.random() < 0.1:
                e = world.draw_exchange(rng)
            elif e.question in asked and rng.random() < 0.9:
                continue
            asked.add(e.question)
            spoken = e.kind != "refuse" and rng.random() < 0.15
            turns.append(([self._ask(rng, e.question, spoken)], e.answer))
        if rng.random() < 0.08:
            turns.insert(0, self._typed(rng)[0])
        return turns

    def _arrange(self, rng, sight, question):
        parts = [sight, self._ask(rng, question, rng.random() < 0.3)]
        if rng.random() < 0.2:
            parts.reverse()
        return parts

    def _picture(self, rng):
        scene, picture = self.studio.picture(rng)
        while len(scene.things) < 3 and rng.random() < 0.6:
            scene, picture = self.studio.picture(rng)

        def ask(rng):  # counting is what is hard
            e = world.ask_scene(rng, scene)
            while rng.random() < 0.5 and not e.question.startswith(
                    ("what do", "how many")):
                e = world.ask_scene(rng, scene)
            return e

        first = [picture], world.describe(scene)
        if rng.random() < 0.88:
            e = ask(rng)
            first = self._arrange(rng, picture, e.question), e.answer
        return self._sight(rng, first, ask)

    def _video(self, rng):
        scene, video = self.studio.video(rng)

        def ask(rng):
            return world.ask_motion(rng, scene)

        def with_sound(text):
            video.sound = self.studio.sound(rng, text, rng.choice(
                (2, int(scene.seconds * media.PER_SECOND))))

        e, what = ask(rng), rng.random()
        if what < 0.25:  # somebody asks in it
            with_sound(e.question)
            first = [video], e.answer
        elif what < 0.35:  # nobody says anything in it
            with_sound("")
            first = [video, written(rng, e.question)], e.answer
        elif what < 0.48:
            if what < 0.38:
                with_sound("")
            first = [video], world.happens(scene)
        else:
            first = self._arrange(rng, video, e.question), e.answer
        return self._sight(rng, first, ask)


def drill(rng):
    """A sum; products, which are few, seldom."""
    while True:
        e = world.draw_exchange(rng, "sum")
        if " times " not in e.question or rng.random() < 0.3:
            return e


def nearly(rng):
    """A question of the world with one word of another."""
    while True:
        words = world.draw_question(rng).split()
        k = rng.randrange(len(words))
        words[k] = rng.choice((rng.choice(world.STRANGE), invented(rng)))
        text = " ".join(words)
        if (not world.is_of_the_world(text)
                and not text.startswith("repeat after me")):
            return world.Exchange("refuse", text, world.REFUSAL)


def typed(rng, e):
    """Some of what is refused is written in words that nobody knows."""
    if e.kind != "refuse" or rng.random() < 0.5:
        return e
    made = [w if w in world.WORDS and rng.random() < 0.8 else invented(rng)
            for w in e.question.split()]
    if all(w in world.WORDS for w in made):
        return e
    return world.Exchange("refuse", " ".join(made), e.answer)


def invented(rng):
    """A word in no list: syllables, or a number in digits, or a word of the
    world with something added."""
    what = rng.random()
    if what < 0.1:
        w = str(rng.randint(0, 999))
    elif what < 0.25:
        w = rng.choice(world.WORDS)
        w += rng.choice(("er", "ing", "ed", "ly", "y", "ish", "ness", "less"))
    else:
        w = "".join(
            rng.choice("b c d f g h j k l m n p r s t v w z ch sh th br st "
                       "tr pl".split() + [""])
            + rng.choice("a e i o u ea ou ai oo".split())
            + rng.choice("n r s t l m d ck".split() + [""] * 8)
            for _ in range(rng.randint(1, 3)))
        if rng.random() < 0.1:
            w = w.capitalize()
    return "plenty" if w in world.WORDS else w


def written(rng, text):
    """As people type it: mostly plain, sometimes with a capital, sometimes
    with a mark at its end."""
    what = rng.random()
    if what < 0.12:
        text = text[0].upper() + text[1:]
    if what < 0.09 or what > 0.96:
        text += rng.choice("??.!") if text[:2].lower() in (
            "wh", "ho") else rng.choice(".!")
    return text
