"""A small suite that is good, and what makes it be refused: the change, where it is found, the words."""

from __future__ import annotations

GOOD = """\
suite: small
data: {set: digits, count: 40}
models: [outsider/tiny]
seeds: [0]
boards:
  - track: white_box
    attacks: [fgsm, {name: pgd, steps: 5}]
    defenses: [none]
    measures: [outsider/quiet]
    threats:
      - {norm: linf, eps: 8/255}
  - track: query
    attacks: [square]
    threats: [{norm: l2, eps: 0.5}]
    queries: 100
  - track: backdoor
    data: {set: digits}
    backdoors: [badnets]
    defenses: [fine_tuning]
  - track: input_detection
    data: {set: digits}
    backdoors: [blended]
    detectors: [strip]
"""

# what is replaced, by what, words of the message; the line is that of the replacement unless a number says otherwise
CASES: dict[str, tuple[str, str, str] | tuple[str, str, str, int]] = {
    "unknown top key": ("seeds: [0]", "sedes: [0]", "unknown key 'sedes'. Did you mean seeds?"),
    "unknown board key": (
        "    attacks: [square]",
        "    atacks: [square]",
        "unknown key 'atacks'. Did you mean attacks?",
    ),
    "unknown data key": ("count: 40", "cuont: 40", "unknown key 'cuont'. Did you mean count?"),
    "unknown threat key": ("eps: 8/255", "epz: 8/255", "unknown key 'epz'. Did you mean eps?"),
    "typo in a name": ("[square]", "[sqare]", "unknown attack 'sqare'. Did you mean square?"),
    "typo in a parameter": (
        "steps: 5",
        "restrats: 5",
        "attack 'pgd' has no parameter 'restrats'. Did you mean restarts?",
    ),
    "wrong type of a parameter": ("steps: 5", "steps: five", "attack 'pgd': steps: "),
    "fraction for a count": ("steps: 5", "steps: 2.5", "found 2.5"),
    "parameter out of range": ("steps: 5", "steps: 0", "greater than or equal to 1, found 0"),
    "parameter not among the choices": ("steps: 5", "loss: cw", "'ce', 'margin' or 'dlr'"),
    "bool for a number": ("steps: 5", "steps: true", "found True"),
    "bool for the count": ("count: 40", "count: yes", "found True"),
    "unknown preset": (
        "{name: pgd, steps: 5}",
        "pgd.stronk",
        "attack 'pgd' has no preset 'stronk'. Did you mean strong?",
    ),
    "eps that is no number": ("8/255", "large", "a number or a fraction such as 8/255, found 'large'"),
    "eps by zero": ("8/255", "8/0", "found '8/0'"),
    "eps missing": ("{norm: linf, eps: 8/255}", "{norm: linf}", "eps is missing"),
    "eps negative": ("8/255", "-0.1", "out of range for linf (0 to 1)"),
    "eps of 0..255": (
        "8/255",
        "8",
        "out of range for linf (0 to 1); eps is for pixels in [0, 1]: 8/255 for 8 grey levels",
    ),
    "eps not a number": ("8/255", ".nan", "expected a finite number, found nan"),
    "unknown norm": ("norm: linf", "norm: l3", "'linf', 'l2', 'l1' or 'l0', found 'l3'"),
    "unknown track": ("track: query", "track: qurey", "unknown track 'qurey'. Did you mean query?"),
    "missing track": ("- track: query\n    attacks", "- attacks", "unknown track None"),
    "missing boards": (GOOD[GOOD.index("boards:") :], "", "boards is missing", 1),
    "empty boards": (GOOD[GOOD.index("boards:") :], "boards: []\n", "at least 1 item"),
    "boards of text": (GOOD[GOOD.index("boards:") :], "boards: white_box\n", "valid list"),
    "a board of text": ("- track: query\n", "- query\n  - track: query\n", "a board is a mapping"),
    "missing name of the suite": ("suite: small\n", "", "suite is missing", 1),
    "bad name of the suite": ("suite: small", "suite: Small Suite", "should match"),
    "no data anywhere": ("data: {set: digits, count: 40}\n", "", "white_box board has no data", 5),
    "no models anywhere": ("models: [outsider/tiny]\n", "", "white_box board has no models", 5),
    "empty models": ("models: [outsider/tiny]", "models: []", "at least 1 item"),
    "models of text": ("models: [outsider/tiny]", "models: outsider/tiny", "valid list"),
    "a model of numbers": ("models: [outsider/tiny]", "models: [3]", "a name or a mapping with `name`, found 3"),
    "a model without name": ("[outsider/tiny]", "[{checkpoint: x}]", "a name or a mapping with `name`"),
    "not a mapping": (GOOD, "- 1\n- 2\n", "expected a mapping with suite, data, models, boards; found list"),
    "empty file": (GOOD, "", "found nothing"),
    "only a comment": (GOOD, "# later\n", "found nothing", 1),
    "broken YAML": ("seeds: [0]", "seeds: [0", "not valid YAML: ", 5),
    "tab": ("    attacks: [square]", "\tattacks: [square]", "'\\t' that cannot start any token"),
    "duplicate key": ("    queries: 100", "    queries: 100\n    queries: 200", "key 'queries' appears twice", 16),
    "key that is no text": ("    queries: 100", "    no: 100", "key 'no' is not text; put it in quotes"),
    "YAML that calls Python": ("[0]", "!!python/object/apply:os.getpid []", "could not determine a constructor"),
    "deep nesting": ("seeds: [0]", "seeds: " + "[" * 600, "nested too deeply", 1),
    "an alias of itself": ("seeds: [0]", "seeds: &s [*s]", "an alias that contains itself", 1),
    "unknown alias": ("seeds: [0]", "seeds: *s", "undefined alias"),
    "a control character": ("seeds: [0]", "seeds: \x07", "not valid YAML"),
    "unknown dataset": (
        "data: {set: digits, count",
        "data: {set: digist, count",
        "unknown dataset 'digist'. Did you mean digits?",
    ),
    "data folder not named": ("{set: digits, count: 40}", "{set: gtsrb}", "set SIEGEBENCH_DATA=FOLDER"),
    "data folder missing": (
        "{set: digits, count: 40}",
        "{set: {name: gtsrb, folder: /no/where}}",
        "there is no folder /no/where",
    ),
    "more images than there are": ("count: 40", "count: 4000", "4000 images requested, it has 500"),
    "no images": ("count: 40", "count: 0", "greater than or equal to 1, found 0"),
    "unknown split": ("count: 40", "split: val", "digits has the splits train and test, not 'val'"),
    "unknown model": (
        "[outsider/tiny]",
        "[outsider/tinny]",
        "unknown model 'outsider/tinny'. Did you mean outsider/tiny?",
    ),
    "unknown timm architecture": ("[outsider/tiny]", "[timm/resnet81]", "no architecture 'resnet81'. Did you mean"),
    "missing checkpoint": ("[outsider/tiny]", "[{name: cifar_resnet20, checkpoint: gone.pth}]", "gone.pth not found"),
    "attack that needs more than the track grants": (
        "[square]",
        "[pgd]",
        "needs gradient access; this query board grants score",
    ),
    "attack whose norm nobody asks for": (
        "norm: l2, eps: 0.5",
        "norm: l1, eps: 3",
        "handles linf, l2; the threats are l1",
        13,
    ),
    "threat that no attack handles": (
        "      - {norm: linf, eps: 8/255}",
        "      - {norm: linf, eps: 8/255}\n      - {norm: l1, eps: 5}",
        "no attack of this board handles l1",
        12,
    ),
    "defense of another track": ("[fine_tuning]", "[jpeg]", "defense 'jpeg' is for white_box, query"),
    "backdoor defense on an attack board": (
        "defenses: [none]",
        "defenses: [none, nab]",
        "defense 'nab' is for backdoor",
    ),
    "detector of another level": ("[strip]", "[neural_cleanse]", "detector 'neural_cleanse' judges models"),
    "unknown detector": ("[strip]", "[stripe]", "unknown detector 'stripe'. Did you mean strip?"),
    "attack among the defenses": ("[fine_tuning]", "[fgsm]", "unknown defense 'fgsm'"),
    "duplicate model": ("[outsider/tiny]", "[outsider/tiny, {name: outsider/tiny}]", "appears twice"),
    "duplicate attack": ("[square]", "[square, square]", "'square' appears twice"),
    "duplicate threat": (
        "      - {norm: linf, eps: 8/255}",
        "      - {norm: linf, eps: 8/255}\n      - {norm: linf, eps: 16/510}",
        "'linf 16/510' appears twice",
        12,
    ),
    "duplicate seed": ("seeds: [0]", "seeds: [0, 0]", "0 appears twice"),
    "negative seed": ("seeds: [0]", "seeds: [-1]", "greater than or equal to 0, found -1"),
    "empty seeds": ("seeds: [0]", "seeds: []", "at least 1 item"),
    "seeds of text": ("seeds: [0]", "seeds: [zero]", "valid integer, found 'zero'"),
    "no queries": ("queries: 100", "queries: 0", "greater than or equal to 1, found 0"),
    "unknown attack inside another": (
        "[square]",
        "[{name: eot, attack: sqare}]",
        "unknown attack 'sqare'. Did you mean square?",
    ),
    "wrong parameter inside another": (
        "[square]",
        "[{name: eot, attack: {name: square, queriez: 3}}]",
        "no parameter 'queriez'. Did you mean queries?",
    ),
    "no attack inside": ("[square]", "[eot]", "attack 'eot' needs the parameter 'attack'"),
    "defense as attack inside": ("[square]", "[{name: eot, attack: none}]", "unknown attack 'none'"),
    "target outside the classes": (
        "[badnets]",
        "[{name: badnets, target: 10}]",
        "class 10 does not exist, the dataset has 0..9",
    ),
    "target of text": ("[badnets]", "[{name: badnets, target: cat}]", "backdoor 'badnets': target"),
    "bool for a target": ("[badnets]", "[{name: badnets, target: true}]", "backdoor 'badnets': target"),
    "rate above one": ("[badnets]", "[{name: badnets, rate: 1.5}]", "less than or equal to 1, found 1.5"),
    "more poison than images of the class": ("[blended]", "[{name: sig, rate: 0.5}]", "eligible; at most rate 0."),
}
