#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes tokenizer/: a small vocabulary of its own with the published added tokens, once as vocab.json + merges.txt +
tokenizer_config.json and once as tokenizer.json, and cases.json: what the Qwen2Tokenizer of transformers 5.23 makes of
strings that are easily got wrong.

    cd tests/core/data && python make-tokenizer.py

A case is {"text", "plain": ids, "special": ids, "decoded", "spoken"}: ids with special tokens as text and as tokens,
then the special ids decoded with and without special tokens.
"""
import json
import os
import sys
import unicodedata

import regex
from transformers import Qwen2Tokenizer

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tools/nano"))
from layout import ADDED_TOKENS, PATTERN, byte_alphabet

OUT = "tokenizer"
MERGES = 460
TRAINING = """
The tokenizer isn't hard to test: it's a matter of what we'd rather not have seen. They're sure, I'm sure, you've seen.
Hello, world! Hello again; the user said hello to the assistant, and the system said nothing at all.
static int\r\nmain (void)\r\n{\r\n  return printf ("hello, world\\n");\r\n}\r\n\r\n
def f(x):\n    if x == None:\n        return {"a": [1, 2, 3]}\n\n\n    # twice\n\treturn x * 2\n\n
for (i = 0; i < n; i++)\n\t\tsum += a[i];  /* !!! ... --- === *** */   while (1);\n        \n    \n
Schöne Grüße aus München, où êtes-vous ? Mañana será otro día. Привет, мир! Что ты видишь на картинке?
你好，世界！今天天气很好。 こんにちは、世界。 안녕하세요, 한국어. مرحبا بالعالم. שלום עולם. नमस्ते दुनिया।
aaaaaaaaaaaaaaaa bbbbbbbb abababababab -------- ======== ........ !!!!!!!! \u3000\u3000 \u00a0\u00a0
😀😀👍👍 👩‍👩‍👧 ½ ⅓ Ⅷ ١٢٣ 2024 3.14159
"""

ODD = [  # flags that the published ones do not use
    ("<tool", {}), ("<left>", {"lstrip": True}), ("<right>", {"rstrip": True}),
    ("<both>", {"lstrip": True, "rstrip": True, "special": True}), ("word", {"single_word": True}),
    ("Zo\u00eb", {"normalized": True}), ("e\u0301\u0301", {}), ("<|x<think>|>", {"special": True}),
]


def add(vocab, merges, a, b):
    if (a, b) not in merges:
        merges.append((a, b))
        if a + b not in vocab:
            vocab.append(a + b)


def train():
    table, _ = byte_alphabet()
    words = {w: 1000 for w in ("system", "user", "assistant")}
    for w in PATTERN.findall(TRAINING):
        words[w] = words.get(w, 0) + 1
    pieces = [([table[b] for b in w.encode()], n) for w, n in sorted(words.items())]
    vocab, merges = list(table.values()), []
    while len(merges) < MERGES:
        count = {}
        for symbols, n in pieces:
            for pair in zip(symbols, symbols[1:]):
                count[pair] = count.get(pair, 0) + n
        best = min(count, key=lambda p: (-count[p], p))
        merges.append(best)
        if "".join(best) not in vocab:
            vocab.append("".join(best))
        for k, (symbols, n) in enumerate(pieces):
            out = []
            for s in symbols:
                if out and (out[-1], s) == best and not joined:
                    out[-1], joined = out[-1] + s, True
                else:
                    out.append(s)
                    joined = False
            pieces[k] = (out, n)
    # merges of whatever stands together in the cases, across what should be cut: they show where it was
    for text in texts():
        symbols = []
        for c in unicodedata.normalize("NFC", text):
            c = [table[b] for b in c.encode()]
            for k in range(1, len(c)):
                add(vocab, merges, "".join(c[:k]), c[k])
            symbols.append("".join(c))
        for a, b in zip(symbols, symbols[1:]):
            add(vocab, merges, a, b)
    # ids in another order than ranks, so that the two cannot be taken for each other
    size, step = len(vocab), 7
    while size % step == 0:
        step += 2
    return {t: (i * step + 3) % size for i, t in enumerate(vocab)}, merges


def dump(name, value, **kw):
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as f:
        json.dump(value, f, **kw)
        f.write("\n")


def write():
    vocab, merges = train()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    added = [{"content": t, **flags, "special": s} for t, s in ADDED_TOKENS] + [{"content": t, **flags, **f} for t, f in ODD]
    config = {
        "added_tokens_decoder": {str(len(vocab) + i): a for i, a in enumerate(added)},
        "additional_special_tokens": [t for t, special in ADDED_TOKENS if special],
        "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "errors": "replace",
    }
    os.makedirs(OUT, exist_ok=True)
    dump("vocab.json", vocab, ensure_ascii=False, separators=(",", ":"))
    dump("tokenizer_config.json", config, ensure_ascii=False, indent=1)
    with open(os.path.join(OUT, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    if os.path.exists(os.path.join(OUT, "tokenizer.json")):
        os.remove(os.path.join(OUT, "tokenizer.json"))
    tokenizer = Qwen2Tokenizer.from_pretrained(OUT)
    tokenizer._tokenizer.save(os.path.join(OUT, "tokenizer.json"), pretty=False)
    return tokenizer


APOSTROPHES = [f"{a}{q}{s}" for q in "'\u2019" for a, s in (
    ("it", "s"), ("IT", "S"), ("don", "t"), ("DON", "T"), ("we", "re"), ("WE", "RE"), ("We", "rE"), ("I", "ve"),
    ("I", "VE"), ("I", "m"), ("I", "M"), ("we", "ll"), ("we", "lL"), ("I", "d"), ("I", "D"), ("x", "ſ"), ("x", "ſs"),
    ("", "ship"), ("rock", "n"), ("", "l"), ("", "r"), ("", "v"), ("", ""), ("", "'"), ("", "ré"), ("", "K"),
    ("", "sx"), ("", "Tx"), ("", "rex"), ("", "VEx"), ("", "mx"), ("", "llx"), ("", "dx"), ("", "lx"), ("", "rx"))]
MORE = """hello|Hello, world!|  hello|hello  |   |    \\n|a  b   c    d| \\t a\\t\\tb|\\n|\\n\\n|\\n\\n\\n|\\r\\n|\\r\\n\\r\\n|\\n\\r|\\r|
a\\nb|a\\r\\nb|a \\n b|a\\n \\n  b|  \\n  \\n  |\\n  x|x\\n  | \\n|\\t\\n|x \\r\\n \\n\\r y|!\\n|!\\n\\n|!!\\r\\n\\r\\nx| !|  !| !\\n !|(\\n)\\n|
0|12|1234567890|1 2  3|3.14159|1,000,000|½⅓¼| ½ ½|a½b|ⅧⅨ|١٢٣٤|๑๒๓|x²|a1b2c3|1st|№5|①②|
int main(void) { return 0; }|  if (x == NULL)\\n    return -1;\\n|for (i = 0; i < n; i++) {\\n\\tsum += a[i];\\n}\\n|{"a": [1, 2, {"b": null}]}|
#include <stdio.h>\\n\\n/* c */ // d\\n|def f(x):\\n    return x * 2  # twice\\n|<html><body class="x">&amp;</body></html>|a->b|x+=1;|$HOME/.bashrc|C:\\\\x|__init__|snake_case_name|
😀|😀😀😀| 👍🏽|👩\u200d👩\u200d👧\u200d👦|🇩🇪🇫🇷|❤️|a😀b|🏴\U000e0067\U000e0062\U000e007f|
你好，世界！|今天天气很好。|こんにちは、世界。|カタカナ ｱｲｳ|안녕하세요|漢字かな交じり文 test 123|𠀀𠀁|﹏《书》|
مرحبا بالعالم|السَّلَامُ عَلَيْكُمْ|שָׁלוֹם עוֹלָם|नमस्ते दुनिया|क्षत्रिय|สวัสดีครับ|Γειά σου Κόσμε|Привет, мир!|ÄÖÜ äöü ß ẞ|ﬁ ﬂ|Ǆǅǆ|ªº|aᵉb| ᵉₙ|
e\u0301|\u00e9|a\u0301\u0323|a\u0323\u0301|\u1ea1\u0301|\u0301|x\u0301\u0302\u0303|\u0300\u0301 a|Å Å Å|Ω Ω|K K|\u0958|\ufb2c|\u0344|\u2126\u0301|q\u0307\u0323|e\u0313\u0301|
\u1112\u1161\u11ab\u1100\u116e\u11a8|\ud55c|\u1112\u1161 \u11ab|\u1161\u1112|\uac00\u11a7|\uac00\u11a8|\u1100\u1161\u1161|
a\u00a0b|\u00a0\u00a0|\u00a0x|\u2028|a\u2028b\u2029c|\u2028\n|\u3000x|\u3000\u3000|\u0085|a\u0085\u0085b|\u0085\n|\ufeffx|\u200bx|x\u200b|\u200c\u200d|\u1680 \u180e|\t!|\u00a0!|\u3000.x|\t!x\t\t!|\u000b\u000c|\u001c\u001d|\u001fa|\u0001|\u007f|
\ue000\uf8ff|\u0378|\U000e0001|\U0010ffff|\U000fffff|\ufffe|\uffff|\ufffd|\u00ad|\u0600|\u06dd1|\u00b4s|`s|
<think>|<think>\\nok\\n</think>|a<think>b| <think> |<tool_call>{"a": 1}</tool_call>|<tool_response>|<tool>|<tool_cal|<think|think>|<<think>>|<think><think>|
<|im_start|>|<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n|a<|im_end|>b|  <|im_end|>  |<|im_start|<|im_end|>|<|im_start|>|>|<|im_start|><|im_start|>|<|im_end|>'s|e<|im_end|>\u0301|x<|im_end|>\\n\\n|
<|audio_start|><|audio_pad|><|audio_pad|><|audio_end|>|<|vision_start|><|image_pad|><|vision_end|>|<tts_pad><tts_text_bos>|<|endoftext|>|<|unknown|>|<|IM_START|>|<|im_start|think>|a<|x<think>|>b|
a <left> b|a  <left>  b|\\n\\u3000<left>|<left>|<right>  \\n x|x <right>|<right><left>|<right> <left>|a <both> b|  <both>  |<both> <both>|<left> <left>| <think> <left>|<right> <think>|
word|a word b|words|sword|word word|word.|_word|word_|wordword|word\u0301|½word|١word|word\u200d|Zoë|Zoe\u0308|Zoe\u0308 Zoë|Zo\u00eb\u0301|e\u0301\u0301|xe\u0301\u0301|e\u0301\u0301\u0301|
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|abababababababababa|--------------------------------|================|. . . . .|........|!!!!!!!!!!!!!?|
ThequickbrownfoxjumpsoverthelazydogThequickbrownfoxjumpsoverthelazydog|supercalifragilisticexpialidocious|HELLOworld|hELLO|\u1d49\u2099|user\\nuser\\n\\n|system\\n|assistant\\n\\n"""


def texts():
    """The strings of the cases."""
    out = ["", "ſs"] + APOSTROPHES  # its merge outranks that of "'ſ"
    for line in MORE.replace("|\n", "|").split("|"):
        out.append(line.replace("\\\\", "\0").replace("\u0002", "|").replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")
                   .replace("\\u3000", "\u3000").replace("\0", "\\"))
    out += [" " * n for n in (5, 8, 16, 33, 100)] + ["\n" * n for n in (4, 9)] + ["\t" * 7, "7" * 20, " " * 20 + "x"]
    return out


# "|" separates; where it belongs to a marker it has to come back
MORE = regex.sub(r"<\|([\w<>]+)\|>", "<\u0002\\1\u0002>", MORE).replace("<|", "<\u0002").replace("|>", "\u0002>")


def main():
    tokenizer = write()
    backend = tokenizer._tokenizer
    cases = []
    for text in dict.fromkeys(texts()):
        case = {"text": text}
        for key, plain in (("plain", True), ("special", False)):
            backend.encode_special_tokens = plain
            case[key] = backend.encode(text, add_special_tokens=False).ids
        case["decoded"] = tokenizer.decode(case["special"], skip_special_tokens=False)
        case["spoken"] = tokenizer.decode(case["special"], skip_special_tokens=True)
        cases.append(case)
    with open(os.path.join(OUT, "cases.json"), "w", encoding="ascii") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases")


main()
