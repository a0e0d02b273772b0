"""`parts.json` is untrusted: whatever it says, no file elsewhere is read, made or changed."""

import json

import pytest

CHANGES = {
    "empty": "",
    "cut": '{"format": "headgraft-parts", "parts": [',
    "deep": "[" * 100_000,
    "list": "[]",
    "binary": "\udcff\udcfe",
    "no parts": {"parts": []},
    "above": {"file": "../victim.h5"},
    "absolute": {"file": "/etc/passwd"},
    "folder": {"file": "part-00001.h5/../../victim.h5"},
    "index itself": {"file": "parts.json"},
    "twice": {"file": "part-00002.h5"},
    "number": {"file": 7},
    "zero byte": {"first": "train\0"},
    "out of order": {"first": "zzz"},
    "surrogate": {"first": "t\ud800"},
    "no text": {"first": None},
    "rows": {"part_rows": 0},
    "true": {"part_rows": True},
    "huge": {"part_rows": 1e400},
    "later format": {"format_version": "2.0"},
    "globs": {"include": "**"},
    "fingerprints": {"fingerprints": ["x"]},
}
OF_A_PART = ("file", "first")
VERBS = (
    ("featurize", "info", "D"),
    ("featurize", "verify", "D"),
    ("featurize", "export", "D", "-o", "O.npz"),
    ("featurize", "join", "D", "-o", "O.h5"),
    ("featurize", "run", "P", "-o", "D"),
    ("classify", "fit", "D", "-o", "O.head"),
)


@pytest.mark.parametrize("name", CHANGES)
def test_every_verb_refuses(own, command, name):
    index, change = own / "parts" / "parts.json", CHANGES[name]
    content = json.loads(index.read_text())
    if isinstance(change, str):
        index.write_bytes(change.encode(errors="surrogateescape"))
    else:
        place = content["parts"][1] if set(change) <= set(OF_A_PART) else content
        place.update(change)
        index.write_text(json.dumps(content))
    (own / "victim.h5").write_bytes((own / "parts" / "part-00001.h5").read_bytes())
    before = {p: p.read_bytes() for p in own.rglob("*") if p.is_file()}
    names = {"D": f"{own / 'parts'}/", "P": own / "photos"}
    for verb in VERBS:
        done = command(*(names.get(w, own / w if w.startswith("O.") else w) for w in verb))
        said = done.stdout + done.stderr
        assert done.returncode == 2, (verb, said)
        assert "parts.json" in said, (verb, said)
        assert "Traceback" not in said, (verb, said)
        assert len(said) < 2000
    after = {p: p.read_bytes() for p in own.rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert after == {p: data for p, data in before.items() if p.suffix != ".lock"}
