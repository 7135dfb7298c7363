"""The text that ioi-mini was trained on, and the prompts of the course, both generated.

A story is a text with slots for names: `[A]` and `[B]` do something together, sometimes
with a third name `[C]` beside them; then the subject `[S]`, one of the two, does something
to the other. In a story with a second subject `[T]`, three do something together, and two
of them do something to the third.

Some pairs of names are held out (`is_held_out`): they never meet in a training story, and
all pairs in `data/prompts.csv` are such pairs.
"""

import csv
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path


def alternatives(text: str) -> list[str]:
    """Split at `|`; an alternative that is common in the text stands more than once."""
    return text.split("|")


def lines(text: str) -> list[str]:
    """Split into lines without their indentation."""
    return [line.strip() for line in text.strip().splitlines()]


def words(text: str) -> list[str]:
    """Split at white space."""
    return text.split()


NAMES = words("""
    John Mary Tom James Dan Sarah Alice Bob Anna Peter Paul David Michael Robert William
    Richard Joseph Thomas Charles Daniel Matthew Anthony Steven Andrew Kevin Brian George
    Edward Jason Ryan Jacob Gary Eric Jonathan Stephen Larry Justin Scott Brandon Samuel
    Patrick Jack Jerry Tyler Aaron Henry Jose Adam Nathan Kyle Carl Jeremy Arthur Roger
    Keith Sean Joe Albert Bruce Alan Juan Louis Harry Simon Martin Leo Oliver Noah Luke Ian
    Victor Oscar Hugo Ivan Marcus Graham Fred Ted Ben Sam Tim Jim Mike Steve Dave Chris Nick
    Matt Greg Alex Josh Jake Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Karen
    Lisa Nancy Margaret Sandra Emily Donna Michelle Carol Amanda Melissa Stephanie Rebecca
    Laura Amy Angela Emma Nicole Helen Samantha Katherine Christine Rachel Catherine Maria
    Heather Diane Ruth Julie Kelly Lauren Christina Joan Megan Andrea Hannah Martha Ann Sara
    Kathryn Julia Judy Sophia Marie Diana Natalie Charlotte Kate Lucy Jane Clara Ellen
    Claire Molly Lily Eva Nora Rita Tina Anne Vanessa Monica Sally Wendy Jill Leah Naomi
    Katie Beth Tara
""")


GRAMMAR = {
    "story": lines("""
        {before}{opener} [A] and [B] {event}{aside}. {between}[S] {action}
        {before}{opener} [A] and [B] {event}{aside}. {between}[S] {action}
        {before}{opener} [A] and [B] {event}{aside}. {between}[S] {action}
        {before}{opener} [A] and [B] {event}{beside}, {conjunction} [S] {action}
        {before}{when} [A] and [B] {event}{beside}, [S] {action}
        {before}{when} [A] and [B] {event}{beside}, [S] {action}
        {before}{when} [A] and [B] {event}{beside}, [S] {action}
        {before}{meeting}{aside}. {between}[S] {action}
        {before}{when} {meeting}, [S] {action}
        {before}The {place} [A] and [B] went to had a {object}. {between}[S] {action}
        {before}The {object} was for [A] and [B]. {between}[S] {action}
    """),
    "trio": lines("""
        {before}{opener} [A], [B] and [C] {event}. {between}[S] and [T] {action}
        {before}{when} [A], [B] and [C] {event}, [S] and [T] {action}
    """),
    "before": alternatives("||||{scene} |{scene} |{scene} {scene} |{third}. |{third}. {scene} "),
    "between": alternatives("||||||{scene} |{scene} {scene} |{then} |{then} |{then} |{then} "),
    "aside": alternatives(
        "||||||. [A] was {adjective}|. [B] was {adjective}|. [A] liked the {place}"
        "|. [B] had a {object}"
    ),
    "beside": alternatives(
        "||||||| while [C] was at the {place}| with the {object} of [C]| near [C]"
    ),
    "third": lines("""
        [C] was at the {place}
        [C] liked the {object}
        The {place} was near [C]
        [C] had a {adjective} {object}
    """),
    "scene": lines("""
        It was a {adjective} day.
        The {place} was very {adjective}.
        The {place} was near the {place}.
        Everyone liked the {object}.
        It was late in the {time}.
        There was a {adjective} {object} in the {place}.
        The weather was {adjective}.
        The {object} was on the table.
        The sun was out and the {place} was full.
        Nobody saw the {adjective} {object}.
        It had been a long week.
        They all wanted a {object}.
        It was {adjective} there.
    """),
    "meeting": lines("""
        [A] met [B] at the {place}
        [A] went to the {place} with [B]
        [A] saw [B] in the {place}
        [A] was at the {place} and [B] was there too
        [A] found [B] near the {place}
        [A] had lunch with [B]
    """),
    "opener": alternatives(
        "Then,|Then|Today,|Yesterday,|Later,|Afterwards,|One day,|In the {time},|Last week,"
        "|After the lunch,|Friends|At the {place},|This {time},|Soon,||"
        "|On the way to the {place},|Last night"
    ),
    "when": alternatives("After|When|While|As|Since|Because|Once|After|When|While"),
    "then": alternatives(
        "Then|Later|Later,|In the {time},|At the end of the day,|Afterwards|Soon|Finally,|Suddenly"
    ),
    "conjunction": alternatives("and|and {adverb}|so|and then|but|and afterwards"),
    "event": lines("""
        went to the {place}
        went to the {place}
        had a lot of fun at the {place}
        were working at the {place}
        were thinking about going to the {place}
        had a long argument
        got a {object} at the {place}
        got a {adjective} {object} at the {place}
        found a {object} at the {place}
        found a {adjective} {object} in the {place}
        were commuting to the {place}
        walked to the {place}
        arrived at the {place}
        met at the {place}
        bought a {object} at the {place}
        spent the {time} at the {place}
        were at the {place}
        had lunch at the {place}
        came back from the {place}
        stayed at the {place}
        drove to the {place}
        talked about the {object}
        visited the {place}
        were sitting in the {place}
        left the {place}
        played in the {place}
        had dinner
        were looking for a {adjective} {object}
        saw a {object} in the {place}
        waited at the {place}
    """),
    "action": lines("""
        {gave} {thing} to
        {gave} {thing} to
        {gave} {thing} to
        {gave} {thing} to
        {adverb} {gave} {thing} to
        {wanted} to {give} {thing} to
        {wanted} to {give} {thing} to
        gave {thing} back to
        {said} to
        {said} to
        {adverb} {said} to
        , who was {adjective}, {gave} {thing} to
        , in the {time}, {gave} {thing} to
        shared {thing} with
        bought {thing} for
        made {thing} for
    """),
    "thing": alternatives(
        "a {object}|a {object}|a {object}|the {object}|a {adjective} {object}"
        "|a {container} of {stuff}|a {container} of {stuff}|it"
    ),
    "place": words("""
        store garden restaurant school hospital office house station park library museum
        market beach theater church kitchen bakery cafe hotel zoo shop bank gym farm
        harbor castle village lake forest bridge
    """),
    "object": words("""
        ring kiss bone basketball computer necklace drink snack book ball letter gift
        key hat cake flower phone pen ticket map toy coin sandwich coat watch camera box
        card guitar lamp cup bag picture present
    """),
    "container": words("bottle glass cup bag box jar bowl plate can"),
    "stuff": words("milk water tea coffee juice soup rice sugar bread fruit"),
    "adjective": words("""
        small big red nice large heavy beautiful broken green blue little strange cheap
        happy warm new
    """),
    "adverb": words("""
        quickly kindly slowly quietly finally later then soon gladly suddenly
    """),
    "time": words("morning evening afternoon night"),
    "gave": words("""
        gave gave gave handed passed sent showed offered brought lent sold threw
        returned
    """),
    "give": words("give give hand pass send show offer bring lend sell throw return"),
    "wanted": words("decided wanted tried agreed promised planned"),
    "said": alternatives(
        "said|said it|whispered|talked|spoke|wrote|explained everything|said hello|waved|sang"
        "|read a story|smiled and spoke"
    ),
}
OPTIONAL = ("before", "between", "aside", "beside")
OPEN_CLASSES = ("place", "object", "stuff", "adjective")
NAME_SLOTS = "ABC"
TRIO_SHARE = 0.1
UNKNOWN_WORD_SHARE = 0.06


@dataclass(frozen=True)
class Role:
    """Who acts on whom: the slots of one or two subjects, and the slot of the answer."""

    subjects: str
    answer: str


PAIR_ROLES = (Role("A", "B"), Role("B", "A"))
TRIO_ROLES = tuple(
    Role(*parts.split(">")) for parts in ["AB>C", "BA>C", "AC>B", "CA>B", "BC>A", "CB>A"]
)


@dataclass(frozen=True)
class Story:
    """A text with slots for names, ending where the answer is to follow."""

    text: str

    @property
    def roles(self) -> tuple[Role, ...]:
        """Every way in which the names can be dealt to subject and answer."""
        return TRIO_ROLES if "[T]" in self.text else PAIR_ROLES

    @property
    def slots(self) -> str:
        """The names that occur, besides the subjects: `"AB"` or `"ABC"`."""
        return "".join(slot for slot in NAME_SLOTS if f"[{slot}]" in self.text)

    def render(self, names: dict[str, str], role: Role) -> str:
        """Put names into all slots."""
        return fill_slots(self.text, names, role)

    def subject_span(self, names: dict[str, str], role: Role) -> tuple[int, int]:
        """Find the first and the last character of the subject, or of both subjects."""
        last_slot = "[T]" if "[T]" in self.text else "[S]"
        before, after = self.text.split("[S]")[0], self.text.split(last_slot)[1]
        whole = len(self.render(names, role))
        return (
            len(fill_slots(before, names, role)),
            whole - len(fill_slots(after, names, role)) - 1,
        )


def fill_slots(text: str, names: dict[str, str], role: Role) -> str:
    """Replace `[A]`, `[B]`, `[C]` by names, and `[S]`, `[T]` by the names of the subjects."""
    filled = {**names, "S": names[role.subjects[0]], "T": names[role.subjects[-1]]}
    return re.sub(r"\[([A-Z])\]", lambda slot: filled[slot[1]], text)


def make_story(rng: random.Random, *, simple: bool = False) -> Story:
    """Write a random story; a simple one has two names and no distracting sentences."""
    start = "trio" if not simple and rng.random() < TRIO_SHARE else "story"
    text = expand(rng.choice(GRAMMAR[start]), rng, OPTIONAL if simple else ())
    return Story(" ".join(text.split()).replace(" ,", ","))


def expand(text: str, rng: random.Random, left_out: tuple[str, ...]) -> str:
    """Replace every `{symbol}` by one of its alternatives, until none is left."""

    def replace(match: re.Match[str]) -> str:
        symbol = match[1]
        if symbol in left_out:
            return ""
        if symbol in OPEN_CLASSES and rng.random() < UNKNOWN_WORD_SHARE:
            return unknown_word(rng)
        return expand(rng.choice(GRAMMAR[symbol]), rng, left_out)

    return re.sub(r"\{(\w+)\}", replace, text)


def unknown_word(rng: random.Random) -> str:
    """Make a word that no vocabulary knows, so that the model learns to pass over such words."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))


def is_held_out(first: str, second: str) -> bool:
    """Tell whether two names never meet in a training story (one pair in ten, evenly spread)."""
    return (NAMES.index(first) + NAMES.index(second)) % 10 == 1


def choose_names(rng: random.Random, slots: str, names: list[str]) -> dict[str, str]:
    """Deal different names to slots, so that no two of them are a pair that is held out."""
    while True:
        chosen = rng.sample(names, len(slots))
        if not any(is_held_out(a, b) for i, a in enumerate(chosen) for b in chosen[:i]):
            return dict(zip(slots, chosen, strict=True))


def vocabulary() -> list[str]:
    """List the tokens that the tokenizer must keep whole, with their leading space.

    Those that can begin a text stand there a second time, without it.
    """
    text = " ".join(re.sub(r"\{\w+\}|\[\w\]", " ", line) for ls in GRAMMAR.values() for line in ls)
    words = sorted(set(re.findall(r"[A-Za-z]+", text)))
    openings = [word for word in words if word[0].isupper()]
    return [f" {word}" for word in NAMES + words] + NAMES + openings


PROMPT_TEMPLATES = {
    "after_went": "After [A] and [B] went to the {place}, [S] gave a {container} of {stuff} to",
    "then_went": "Then, [A] and [B] went to the {place}. [S] gave a {object} to",
    "had_fun": "Then, [A] and [B] had a lot of fun at the {place}. [S] gave a {object} to",
    "working": "Then, [A] and [B] were working at the {place}. [S] decided to give a {object} to",
    "thinking": "Then, [A] and [B] were thinking about going to the {place}. [S] wanted to give "
    "a {object} to",
    "argument": "Then, [A] and [B] had a long argument, and afterwards [S] said to",
    "when_got": "When [A] and [B] got a {object} at the {place}, [S] decided to give it to",
    "commuting": "While [A] and [B] were commuting to the {place}, [S] gave a {object} to",
    "lunch": "After the lunch, [A] and [B] went to the {place}. [S] gave a {object} to",
    "friends": "Friends [A] and [B] found a {object} at the {place}. [S] gave it to",
    "relative": "The {place} [A] and [B] went to had a {object}. [S] gave it to",
    "warm_day": "It was a warm day. [A] and [B] met at the {place}. Later, [S] showed a {object} "
    "to",
}
PROMPTS_PER_TEMPLATE_AND_ORDER = 5
SEED_TEXT = "After [A] and [B] went to the store, [S] gave a bottle of milk to"
SEED_NAMES = {"A": "John", "B": "Mary"}
ORDER_OF_SUBJECT = {"ABBA": Role("B", "A"), "BABA": Role("A", "B")}
COLUMNS = ("clean", "corrupted", "answer", "foil", "kind", "order", "template")


def make_prompts(seed: int = 0) -> list[dict[str, str]]:
    """Make the rows of `data/prompts.csv`: every clean prompt with a swap and with an abc twin.

    Templates after Wang et al. 2022, arXiv:2211.00593, appendix; names are pairs held out
    from training.
    """
    rng = random.Random(seed)
    rows = []
    for template, pattern in PROMPT_TEMPLATES.items():
        for order, role in ORDER_OF_SUBJECT.items():
            for _ in range(PROMPTS_PER_TEMPLATE_AND_ORDER):
                text, names = fill_words(pattern, rng), choose_held_out_names(rng)
                if not rows:
                    text, names = SEED_TEXT, SEED_NAMES
                rows += prompt_rows(text, names, role, rng, order=order, template=template)
    return sorted(rows, key=lambda row: row["kind"], reverse=True)


def prompt_rows(
    text: str, names: dict[str, str], role: Role, rng: random.Random, **labels: str
) -> list[dict[str, str]]:
    """Make one clean prompt and its two corrupted twins."""
    other_role = Role(role.answer, role.subjects)
    unrelated = rng.sample([name for name in NAMES if name not in names.values()], 3)
    corrupted = {
        "swap": fill_slots(text, names, other_role),
        "abc": fill_slots(
            text.replace("[S]", "[C]"), dict(zip("ABC", unrelated, strict=True)), role
        ),
    }
    return [
        {
            "clean": fill_slots(text, names, role),
            "corrupted": prompt,
            "answer": f" {names[role.answer]}",
            "foil": f" {names[role.subjects]}",
            "kind": kind,
            **labels,
        }
        for kind, prompt in corrupted.items()
    ]


def fill_words(pattern: str, rng: random.Random) -> str:
    """Replace every `{symbol}` by a known word."""
    return re.sub(r"\{(\w+)\}", lambda match: rng.choice(GRAMMAR[match[1]]), pattern)


def choose_held_out_names(rng: random.Random) -> dict[str, str]:
    """Choose two names that never meet in a training story."""
    while True:
        first, second = rng.sample(NAMES, 2)
        if is_held_out(first, second):
            return {"A": first, "B": second}


def write_prompts(path: Path) -> None:
    """Write `data/prompts.csv`: `python -m helpers.corpus data/prompts.csv`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(make_prompts())


if __name__ == "__main__":
    write_prompts(Path(sys.argv[1]))
