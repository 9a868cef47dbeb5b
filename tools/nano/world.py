# SPDX-License-Identifier: LGPL-2.1-or-later
"""The little world of qomni-nano: everything that can be said and answered.

    draw_exchange(rng) -> question and answer, as text
    draw_dialogue(rng) -> several of them, the later ones leaning on the earlier
    draw_utterance(rng) -> words to be transcribed
    draw_scene(rng) -> things in a picture; draw_motion(rng) -> one that moves
    ask_scene(rng, scene), ask_motion(rng, scene) -> an exchange about them

Lower-case words, no punctuation, numbers in words. Nothing here knows of sound,
pixels or weights: the training data and the acceptance test both start here.
"""
from dataclasses import dataclass, field

SMALL = ("zero one two three four five six seven eight nine ten eleven twelve "
         "thirteen fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = SMALL[:10]

ROOMS = "kitchen bedroom hall garden".split()
APPLIANCES = "light fan heater radio".split()
OPENINGS = "door window garage curtain".split()

SHAPES = "circle square triangle star".split()
COLOURS = "red green blue yellow orange purple black white".split()
ROWS = "top middle bottom".split()
COLUMNS = "left centre right".split()
DIRECTIONS = "left right up down".split()

REFUSAL = "i only know numbers colours shapes and switches"
LARGEST = 199  # sums and their follow-ups stay within ± this

PREFIXES = ("what is", "what's", "how much is", "tell me")

# Words that people say to it and that are not of the world: what is built of
# them is refused. The acceptance test has its own.
STRANGE = """
about after again air all am an animal any apple are ask at away baby back bad
ball banana bank be bear because bed been before best big bird birthday boat
body book bottle box boy bread bring brother brown bus but butter buy by cake
call can car card care cat chair change cheese child children city clean clock
clothes cloud coffee cold come cook cool could country cow cup cut dad dance
dark day dear did dinner dish divided do doctor does dog dollar done draw dream
dress drink drive duck each ear early earth east eat egg end england english
ever every eye face fall family far farm fast father favourite feel feet fell
find fine fire first fish floor flower fly food foot for forget found fox france
friend from fruit full fun funny game gave get girl give glad glass go goes
going gold gone good got grandma grass great grow had hair half hand happy hard
has hat have he head hear heard heart hello help her here hi high him his hold
home hope horse hot hour house hungry ice idea if in into is it job joke juice
jump just keep key kid kind king kiss know lake land language large last late
laugh learn leave leg let letter life like line lion list listen little live
long look lost lot love lunch made make man map market may maybe me mean meat
meet meeting message milk mind miss moment monday money month moon more morning
most mother mountain mouse mouth move movie much mum must my name near need
never new news next nice night no noise north nose not now ocean of often oh old
on once open or orange other our out outside over page paint paper parents park
party pay peace pen people person phone picture pig place plan planet plant play
please poem point poor potato power president pretty prime problem pull push put
queen question quick quiet rabbit rain read ready really remember rest rice ride
river road rock room run sad said salt same sand saturday say school sea season
second see sell send seven shall she sheep ship shirt shoe shop should show sing
sister sit sky sleep slow small smell smile snow so some someone something
sometimes son song soon sorry soup south speak sport spring stand start stay
still stone story street strong student sugar summer sun sunday sure sweet swim
table take talk tall tea teach team tennis than thank that their them then there
they thing think this those thought throw thursday ticket time tired to today
together tomorrow tonight too town toy train travel tree trip true try tuesday
uncle under understand until us use very village visit wait walk wall want war
warm was wash watch water way we wear weather wednesday week weekend well went
were west wet what when where which who why wife will wind winter wish with
woman wonder word work world would write wrong year yes yesterday you young your
""".split()  # less those of WORDS: see below

STRANGE_SENTENCES = """
hello
hello there
hi how are you
good morning
good night
thank you very much
who are you
what is your name
how old are you
where do you live
what time is it
what day is it today
what is the weather like today
will it rain tomorrow
tell me a joke
tell me a story
sing me a song
write a poem about the sea
what is the capital of france
who is the president
how far is the moon
how do you make bread
what is the meaning of life
do you like music
can you help me
i love you
i am hungry
call my mother
send a message to my brother
what is ten divided by two
what is the square root of nine
how many people live in england
how many days are in a year
where is my phone
book a table for two
order a taxi
read me the news
translate hello into french
who won the game yesterday
what should i eat for dinner
turn on the oven
turn off the television
open the fridge
close the book
play a game with me
wake me up at seven
remind me to buy milk
where can i buy shoes
is it cold outside
please be quiet
""".strip().split("\n")


def say(n):
    """A number in words: "minus three", "one hundred and forty four"."""
    if n < 0:
        return "minus " + say(-n)
    if n < 20:
        return SMALL[n]
    if n < 100:
        ten, one = divmod(n, 10)
        return TENS[ten - 2] + (" " + SMALL[one] if one else "")
    hundred, rest = divmod(n, 100)
    return SMALL[hundred] + " hundred" + (" and " + say(rest) if rest else "")


def plural(shape):
    return shape + "s"


def _words():
    sentences = [
        "what is plus minus times what's how much is tell me and",
        " ".join(SMALL + TENS), "hundred",
        "turn on off the " + " ".join(ROOMS + APPLIANCES),
        "open close closed " + " ".join(OPENINGS),
        "set a timer for minutes minute volume up down play stop the music",
        "playing stopped is",
        "repeat after me spell transcribe", REFUSAL,
        " ".join(SHAPES + [plural(s) for s in SHAPES] + COLOURS),
        "what do you see how many are there what colour is the where is",
        " ".join(ROWS + COLUMNS + DIRECTIONS),
        "which way does the move what happens moves objects shapes",
    ]
    return sorted(set(" ".join(sentences).split()))


WORDS = _words()
STRANGE = [w for w in STRANGE if w not in WORDS]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Exchange:
    kind: str  # sum, follow, switch, repeat, spell, refuse, see, move
    question: str
    answer: str


@dataclass
class Thing:
    """One thing of a picture; lengths are fractions of the picture's width
    (x, size) and height (y)."""
    shape: str
    colour: str
    x: float
    y: float
    size: float

    @property
    def place(self):
        return (ROWS[min(2, int(self.y * 3))] + " "
                + COLUMNS[min(2, int(self.x * 3))])


@dataclass
class Scene:
    width: int
    height: int
    things: list = field(default_factory=list)
    background: str = "white"
    direction: str = ""  # of the one thing of a video
    distance: float = 0.0  # it travels, of the width or height it moves along
    seconds: float = 0.0


# --- numbers, switches, words -------------------------------------------------

def _sum(rng):
    op = rng.choice(("plus", "minus", "times"))
    most = 12 if op == "times" else 50
    a, b = rng.randint(0, most), rng.randint(0, most)
    c = {"plus": a + b, "minus": a - b, "times": a * b}[op]
    said = f"{say(a)} {op} {say(b)}"
    return c, Exchange("sum", f"{rng.choice(PREFIXES)} {said}",
                       f"{said} is {say(c)}")


def _follow(rng, c):
    for _ in range(100):
        op = rng.choice(("plus", "minus"))
        d = rng.randint(0, 50)
        e = c + d if op == "plus" else c - d
        if abs(e) <= LARGEST:
            break
    else:
        raise AssertionError(f"no follow-up to {c}")
    return e, Exchange("follow", f"and {op} {say(d)}",
                       f"{say(c)} {op} {say(d)} is {say(e)}")


def _switch(rng):
    what = rng.randrange(9)
    if what < 3:
        state, thing = rng.choice(("on", "off")), rng.choice(APPLIANCES)
        if rng.random() < 0.85:
            thing = f"{rng.choice(ROOMS)} {thing}"
        q, a = f"turn {state} the {thing}", f"the {thing} is {state}"
    elif what < 5:
        verb, thing = rng.choice(("open", "close")), rng.choice(OPENINGS)
        q = f"{verb} the {thing}"
        a = f"the {thing} is {'open' if verb == 'open' else 'closed'}"
    elif what < 7:
        n = rng.randint(0, 99)
        unit = "minute" if n == 1 and rng.random() < 0.7 else "minutes"
        q, a = f"set a timer for {say(n)} {unit}", f"timer set for {say(n)} {unit}"
    elif what < 8:
        q = a = f"volume {rng.choice(('up', 'down'))}"
    else:
        verb = rng.choice(("play", "stop"))
        q = f"{verb} the music"
        a = "music playing" if verb == "play" else "music stopped"
    return Exchange("switch", q, a)


def _some_words(rng, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def _repeat(rng):
    said = _some_words(rng, 6)
    if rng.random() < 0.3:
        said = " ".join(draw_utterance(rng).split()[:6])
    return Exchange("repeat", f"repeat after me {said}", said)


def _spell(rng):
    word = rng.choice([w for w in WORDS if "'" not in w])
    return Exchange("spell", f"spell {word}", " ".join(word))


def _refuse(rng):
    what = rng.random()
    if what < 0.35:
        q = rng.choice(STRANGE_SENTENCES)
    elif what < 0.75:
        q = " ".join(rng.choice(STRANGE) for _ in range(rng.randint(1, 8)))
    else:  # a sentence of the world with strange words in it
        words = draw_question(rng).split()
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), rng.choice(STRANGE))
            del words[rng.randrange(len(words))]
        q = " ".join(words)
    if is_of_the_world(q):
        return _refuse(rng)
    return Exchange("refuse", q, REFUSAL)


def is_of_the_world(q):
    """Whether a text question might be one this world answers: what it refuses
    must hold a word that is not of the world."""
    return all(w in WORDS for w in q.split())


def draw_exchange(rng, kind=None):
    """One question without media and its answer."""
    kind = kind or rng.choices(
        ("sum", "switch", "repeat", "spell", "refuse"), (5, 3, 2, 1, 2))[0]
    if kind == "sum":
        return _sum(rng)[1]
    return {"switch": _switch, "repeat": _repeat, "spell": _spell,
            "refuse": _refuse}[kind](rng)


def draw_dialogue(rng, most=4):
    """Exchanges of one conversation: sums gone on from, other things between
    them."""
    c, first = _sum(rng)
    ret = [first]
    while len(ret) < most and rng.random() < 0.7:
        if rng.random() < 0.8:
            c, exchange = _follow(rng, c)
        else:
            c, exchange = _sum(rng)
        ret.append(exchange)
    if rng.random() < 0.3:
        ret.insert(0, draw_exchange(rng))
    return ret


def question_about_sight(rng):
    what = rng.randrange(6)
    shape = rng.choice(SHAPES)
    return ("what do you see", "what happens",
            f"how many {plural(shape)} are there",
            f"what colour is the {shape}", f"where is the {shape}",
            f"which way does the {shape} move")[what]


def draw_question(rng):
    """Any question of the world, with or without a picture in mind."""
    if rng.random() < 0.25:
        return question_about_sight(rng)
    if rng.random() < 0.15:
        return _follow(rng, rng.randint(-50, 144))[1].question
    return draw_exchange(rng, rng.choices(
        ("sum", "switch", "repeat", "spell"), (4, 4, 2, 1))[0]).question


def draw_utterance(rng):
    """Words somebody says: questions mostly, digits, answers, any words."""
    what = rng.random()
    if what < 0.55:
        return draw_question(rng)
    if what < 0.75:
        return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 8)))
    if what < 0.85:
        return draw_exchange(rng, rng.choice(("sum", "switch"))).answer
    if what < 0.90:
        return describe(draw_scene(rng))
    return _some_words(rng, 8)


# --- pictures -----------------------------------------------------------------

def draw_scene(rng, most=4, width=None, height=None):
    """1…most things of the world that do not touch."""
    ratio = rng.choice((1, 1, 4 / 3, 4 / 3, 16 / 9, 3 / 4, 3 / 2))
    width = width or rng.randrange(224, 641)
    height = height or max(160, round(width / ratio))
    scene = Scene(width, height, background=rng.choice(COLOURS + ["grey"] * 4))
    kinds = [(rng.choice(SHAPES), rng.choice([c for c in COLOURS
                                              if c != scene.background]))
             for _ in range(rng.randint(1, most))]
    for _ in range(rng.randint(1, most)):
        shape, colour = rng.choice(kinds)
        for _ in range(60):
            limit = 0.85 * min(1, height / width)
            size = min(limit, rng.choice((rng.uniform(0.1, 0.25),
                                          rng.uniform(0.1, 0.6))))
            x = rng.uniform(size / 2, 1 - size / 2)
            half = size / 2 * width / height
            y = rng.uniform(half, 1 - half)
            if all(abs(x - t.x) * width > (size + t.size) / 2 * width + 3
                   or abs(y - t.y) * height > (size + t.size) / 2 * width + 3
                   for t in scene.things):
                scene.things.append(Thing(shape, colour, x, y, size))
                break
    return scene


def count_things(scene):
    """(number, colour, shape), in the order they are named: larger numbers
    first, then as in SHAPES and COLOURS."""
    found = {}
    for t in scene.things:
        found[t.shape, t.colour] = found.get((t.shape, t.colour), 0) + 1
    return [(n, c, s) for (s, c), n in sorted(
        found.items(), key=lambda i: (-i[1], SHAPES.index(i[0][0]),
                                      COLOURS.index(i[0][1])))]


def describe(scene):
    return " and ".join(f"{say(n)} {c} {plural(s) if n > 1 else s}"
                        for n, c, s in count_things(scene))


def ask_scene(rng, scene):
    counts = {s: sum(t.shape == s for t in scene.things) for s in SHAPES}
    alone = [t for t in scene.things if counts[t.shape] == 1]
    what = rng.choice(("see", "see", "many", "colour", "where", "where"))
    if what in ("colour", "where") and alone:
        t = rng.choice(alone)
        if what == "colour":
            return Exchange("see", f"what colour is the {t.shape}", t.colour)
        return Exchange("see", f"where is the {t.shape}", t.place)
    if what == "many":
        s = rng.choice(SHAPES + [t.shape for t in scene.things])
        return Exchange("see", f"how many {plural(s)} are there",
                        say(counts[s]))
    return Exchange("see", "what do you see", describe(scene))


def draw_motion(rng, width=None, height=None):
    """One thing that moves 2…6 seconds; x and y say where it starts."""
    scene = draw_scene(rng, most=1, width=width, height=height)
    t = scene.things[0]
    scene.seconds = rng.uniform(2, 6)
    scene.direction = rng.choice(DIRECTIONS)
    across = scene.direction in ("left", "right")
    half = t.size / 2 * (1 if across else scene.width / scene.height)
    room = 1 - 2 * half
    scene.distance = rng.uniform(0.5, 1) * room
    start = half + rng.uniform(0, room - scene.distance)
    if scene.direction in ("left", "up"):
        start += scene.distance
    if across:
        t.x = start
    else:
        t.y = start
    return scene


def place_at(scene, at):
    """The moving thing's centre after the part `at` (0…1) of the time."""
    t = scene.things[0]
    step = at * scene.distance
    x = t.x + {"left": -step, "right": step}.get(scene.direction, 0)
    y = t.y + {"up": -step, "down": step}.get(scene.direction, 0)
    return x, y


def happens(scene):
    t = scene.things[0]
    return f"the {t.colour} {t.shape} moves {scene.direction}"


def ask_motion(rng, scene):
    t = scene.things[0]
    what = rng.random()
    if what < 0.45:
        return Exchange("move", f"which way does the {t.shape} move",
                        scene.direction)
    if what < 0.9:
        return Exchange("move", "what happens", happens(scene))
    if what < 0.95:
        return Exchange("move", f"what colour is the {t.shape}", t.colour)
    return Exchange("move", "what do you see", describe(scene))


# --- answers ------------------------------------------------------------------

def draw_answer(rng):
    """Something that may have to be said, of any kind."""
    what = rng.random()
    if what < 0.45:
        return draw_exchange(rng).answer
    if what < 0.6:
        return draw_dialogue(rng)[-1].answer
    if what < 0.7:
        return ask_scene(rng, draw_scene(rng)).answer
    if what < 0.75:
        return ask_motion(rng, draw_motion(rng)).answer
    return draw_utterance(rng)
