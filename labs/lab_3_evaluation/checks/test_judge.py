"""Checks of task 3.5: a judge that is judged itself."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from deepeval.errors import MissingTestCaseParamsError
from deepeval.metrics import BaseMetric
from deepeval.metrics.utils import copy_metrics
from deepeval.models import DeepEvalBaseLLM
from deepeval.test_case import LLMTestCase
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from support.chat_api import Answerer, ChatApi, Forward, Reply

from shared.assistant.material import contexts_of, load_documents, load_labelled
from shared.engine import EngineError
from shared.grading.expect import expect, expect_equal, expect_raises, fail, plain, show

MODEL = "judge-under-test"
Serve = Callable[[Answerer], ChatApi]
Scripted = Callable[[Any, int, str], Reply]
"""What a judge replies about an example, for the run with this number and this wording."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves scripted judges; all of them are closed at the end."""
    opened: list[ChatApi] = []

    def served(answer: Answerer) -> ChatApi:
        opened.append(ChatApi(answer))
        return opened[-1]

    yield served
    for api in opened:
        api.close()


def test_a_request_carries_prompt_schema_temperature_and_seed(learner, serve, rng):
    wanted = {"quote": "as it stands there", "verdict": "unsupported"}
    api = serve(lambda prompt, body: Reply(json.dumps(wanted)))
    temperature, limit = round(float(rng.uniform(0.2, 1.2)), 2), int(rng.integers(40, 200))
    model = learner.EngineModel(api.base_url, MODEL, temperature=temperature, max_tokens=limit)
    seeds = [int(s) for s in rng.integers(1, 2**31, 3)]
    prompt = f"Judge this: {seeds}"
    made = model.generate(prompt, schema=learner.Opinion, seed=seeds[0])
    later = asyncio.run(model.a_generate(prompt, schema=learner.Opinion, seed=seeds[1]))
    text = model.generate(prompt, seed=seeds[2])
    expect_equal(
        [type(made).__name__, plain(made), plain(later), text],
        ["Opinion", wanted, wanted, json.dumps(wanted)],
        what="what generate, a_generate and generate without a schema returned",
        why="DeepEval's metrics ask a model in just these ways.",
        hint="what-was-sent",
    )
    expect(
        isinstance(model, DeepEvalBaseLLM) and model.get_model_name() == MODEL,
        observed=f"a {type(model).__name__} named {model.get_model_name()!r}",
        expected=f"a DeepEvalBaseLLM named {MODEL!r}",
        why="Reports say by this name who judged.",
        hint="what-was-sent",
    )
    for body, seed in zip(api.asked, seeds, strict=True):
        sent = {k: body.get(k) for k in ("model", "temperature", "max_tokens", "seed", "messages")}
        expect_equal(
            sent,
            {
                "model": MODEL,
                "temperature": temperature,
                "max_tokens": limit,
                "seed": seed,
                "messages": [{"role": "user", "content": prompt}],
            },
            what=f"the request of a model with temperature={temperature}, max_tokens={limit} "
            f"asked with seed={seed}",
            why="Runs at temperature 0, or with one seed, are the same run again. That they agree "
            "says nothing.",
            hint="what-was-sent",
        )
    for body, schema in zip(api.asked, (True, True, False), strict=True):
        sent_schema = _sent_schema(body)
        expect_equal(
            sorted(sent_schema.get("properties", {})),
            ["quote", "verdict"] if schema else [],
            what=f"properties of the JSON schema in response_format, asked "
            f"{'with' if schema else 'without'} schema=Opinion",
            why="A small model writes valid JSON only where the engine holds it to a schema.",
            hint="what-was-sent",
        )
    down = serve(lambda prompt, body: Reply(None, status=503))
    gone = serve(lambda prompt, body: Reply(None))
    gone.close()
    item = learner.Item("Why?", ("Because it is so.",), "It is so.")
    for url, what in ((down.base_url, "answers 503"), (gone.base_url, "is gone")):
        broken = learner.EngineModel(url, MODEL)
        expect_raises(
            learner.JudgeUnavailable,
            lambda broken=broken: learner.judge_answer(broken, item, seeds=(1, 2)),
            doing=f"an answer to be judged by an engine that {what}",
            why="An outage is no verdict and no fault of the judge. An evaluation that goes on "
            "through it reports figures about nothing.",
            hint="an-outage",
        )


def test_a_reply_that_was_cut_off_is_no_vote(learner, serve, domain, rng):
    (example,) = drawn(learner, domain, rng, 1)
    ends = [
        (supported(example.item), "length"),
        (unsupported(), "length"),
        (supported(example.item)[:-9], "length"),
        ('{"quote": "' + " \n" * 40, "length"),
        (supported(example.item), "content_filter"),
    ]
    api = serve(nothing)
    for text, finish in ends:
        api.now(lambda prompt, body, text=text, finish=finish: Reply(text, finish=finish))
        verdict = judged(learner, api, example.item, seeds=(3, 4, 5))
        expect_equal(
            [verdict["outcomes"], verdict["grounded"]],
            [["truncated"] * 3, None],
            what=f"outcomes and grounded after three replies {show(text, 120)} with "
            f"finish_reason {finish!r}",
            why="The judge was not done. White space alone can eat a budget, and what a longer "
            "reply would have ended with nobody knows."
            if finish == "length"
            else "Only a reply with finish_reason 'stop' ended by itself. Of all others, also of "
            "kinds that come with the next engine, the end is not the judge's own.",
            hint="cut-off",
        )


def test_a_reply_that_cannot_be_read_is_no_vote(learner, serve, domain, rng):
    (example,) = drawn(learner, domain, rng, 1)
    good = supported(example.item)
    quote = json.loads(good)["quote"]
    texts = [
        "The answer is supported.",
        "I cannot say whether it is supported.",
        f"Sure, here it is: {good}",
        json.dumps({"quote": quote}),
        json.dumps({"quote": quote, "verdict": "yes"}),
        json.dumps({"quote": quote, "verdict": True}),
        json.dumps("supported"),
        "",
        None,
    ]
    api = serve(nothing)
    for text in texts:
        # The second time one asks, the judge writes what one would like to read.
        tries: Counter[Any] = Counter()

        def answer(prompt: str, body: Mapping[str, Any], text=text, tries=tries) -> Reply:
            tries[body.get("seed")] += 1
            return Reply(text if tries[body.get("seed")] == 1 else good)

        api.now(answer)
        verdict = judged(learner, api, example.item, seeds=(7, 8, 9))
        expect(
            len(api.asked) <= 3,
            observed=f"{len(api.asked)} requests for three runs that reply {show(text, 120)}",
            expected="3",
            why="A judge that is asked until it can be read looks as if it could always be read. "
            "It is slower, dearer, and its failures are in no report.",
            hint="every-run",
        )
        expect_equal(
            [verdict["outcomes"], verdict["grounded"]],
            [["malformed"] * 3, None],
            what=f"outcomes and grounded after three replies {show(text, 120)}",
            why="A judge that fails must not let answers pass. If garbage counts as a yes, the "
            "worse the judge, the greener the report.",
            hint="unreadable",
        )


def test_support_counts_only_with_words_of_one_source(learner, serve, domain, rng):
    documents = load_documents(domain)
    picked = rng.choice(len(documents), 2, replace=False)
    one, two = (documents[i].text for i in picked)
    answer = "The " + " ".join(f"{word(rng)} {word(rng)}" for _ in range(4)) + "."
    item = learner.Item(f"Who may ask about {word(rng)} and {word(rng)}?", (one, two), answer)
    words = one.split()
    start = int(rng.integers(0, len(words) - 12))
    passage = words[start : start + 8]
    begun, ended = inside_a_word(rng, words, item.contexts)
    bad = {
        "words of the answer itself": answer,
        "words of the question": item.question,
        "made-up words": f"{word(rng)} {word(rng)} {word(rng)} {word(rng)}",
        "an empty quote": "",
        "blanks": "   ",
        "two words of a source": " ".join(words[start : start + 2]),
        "the end of one source and the beginning of the next": " ".join(
            [*words[-4:], *two.split()[:4]]
        ),
        "words of a source in another order": " ".join(passage[4:] + passage[:4]),
        "words of a source with one changed": " ".join([*passage[:4], word(rng), *passage[5:]]),
        "a source from inside a word": begun,
        "a source that ends inside a word": ended,
    }
    good = {
        "words of a source": " ".join(passage),
        "words of a source in capitals, with other white space": "\n ".join(passage).upper(),
        "three words of the second source": " ".join(two.split()[1:4]),
        "the end of a source": " ".join(words[-4:]),
        "the end of a source without its full stop": " ".join(words[-4:]).rstrip("."),
    }
    api = serve(nothing)
    for texts, wanted in ((bad, "no_evidence"), (good, "supported")):
        for name, quote in texts.items():
            reply = json.dumps({"quote": quote, "verdict": "supported"})
            api.now(lambda prompt, body, reply=reply: Reply(reply))
            verdict = judged(learner, api, item, seeds=(1,))
            expect_equal(
                [verdict["outcomes"], verdict["quotes"]],
                [[wanted], [quote] if wanted == "supported" else []],
                what=f"outcomes and quotes of a run that says 'supported' and quotes {name} "
                f"({show(quote, 100)})",
                why="A quote that breaks off inside a word says something else than the source: "
                "a fee of 5 where it is 50."
                if "inside a word" in name
                else "A verdict that rests on nothing is an opinion. A model that is to say yes "
                "finds something to quote, and the claim itself is always at hand."
                if wanted == "no_evidence"
                else "Models copy with other capitals and line ends. Evidence that is thrown away "
                "makes a good judge look bad.",
                hint="whose-words",
            )
    api.now(lambda prompt, body: Reply(unsupported()))
    expect_equal(
        judged(learner, api, item, seeds=(1,))["outcomes"],
        ["unsupported"],
        what="outcomes of a run that says 'unsupported' with an empty quote",
        why="What no source says cannot be quoted from one.",
        hint="whose-words",
    )


def test_a_verdict_is_what_more_than_half_of_all_runs_say(learner, serve, domain, rng):
    (example,) = drawn(learner, domain, rng, 1)
    kinds = {
        "supported": Reply(supported(example.item)),
        "unsupported": Reply(unsupported()),
        "malformed": Reply("{"),
        "truncated": Reply(unsupported(), finish="length"),
        "no_evidence": Reply(json.dumps({"quote": "", "verdict": "supported"})),
    }
    s, u, m, t, n = kinds
    plans = [
        [s, u, u],
        [u, s, s, u, s],
        [m, s, u, u, u],
        [s, s, u, u],
        [s, s, m, t, n],
        [u, m, t],
        [s, s, s, m, t],
        [u, u, u, n, n],
        [s, m],
        *([str(k) for k in rng.choice(list(kinds), 5)] for _ in range(4)),
    ]
    api = serve(nothing)
    for plan in plans:
        seeds = [int(x) for x in rng.choice(10_000, len(plan), replace=False)]
        given = dict(zip(seeds, plan, strict=True))
        api.now(lambda prompt, body, given=given: kinds[given.get(body.get("seed"), "malformed")])
        verdict = judged(learner, api, example.item, seeds=tuple(seeds))
        expect_equal(
            sorted(api.seeds()),
            sorted(seeds),
            what=f"seeds of the requests for runs {seeds}, in order of size",
            why="A judge at a temperature above 0 says something else next time. One run shows one "
            "of its answers, and that as if it were the only one.",
            hint="every-run",
        )
        expect_equal(
            verdict["outcomes"],
            plan,
            what=f"outcomes of runs that end as {', '.join(plan)}",
            why="What each run came to is what one looks at when a verdict is doubted.",
            hint="every-run",
        )
        grounded, agreement = majority(plan)
        expect_equal(
            [verdict["grounded"], verdict["agreement"]],
            [grounded, agreement],
            abs_=1e-9,
            what=f"grounded and agreement after runs that end as {', '.join(plan)}",
            why="Two votes of five are no majority, whatever became of the other three. A judge "
            "that is seldom readable would decide with the little that is left.",
            hint="more-than-half",
        )
    api.now(lambda prompt, body: kinds["supported"])
    for seeds in ((), (4, 4)):
        expect_raises(
            ValueError,
            lambda seeds=seeds: judged(learner, api, example.item, seeds=seeds),
            doing=f"seeds={seeds}",
            why="The same run twice is no second opinion.",
            hint="every-run",
        )


def test_pairs_are_judged_in_both_orders(learner, serve, domain, rng):
    (example,) = drawn(learner, domain, rng, 1)
    question, contexts = example.item.question, example.item.contexts
    seeds = tuple(int(x) for x in rng.choice(10_000, 5, replace=False))
    a, b = f"Answer {word(rng)}.", f"Answer {word(rng)}."
    straight = learner.pair_prompt(question, contexts, a, b)
    swapped = learner.pair_prompt(question, contexts, b, a)

    api = serve(nothing)
    model = learner.EngineModel(api.base_url, MODEL)

    def asked(plan: Sequence[str]) -> dict[str, Any]:
        """Compare by a judge that follows a plan: for each seed a, b, first, second or failed."""
        wanted = dict(zip(seeds, plan, strict=True))

        def answer(prompt: str, body: Mapping[str, Any]) -> Reply:
            way = wanted.get(body.get("seed"), plan[0])
            if way == "failed":
                return Reply("The second one, I think.")
            if way == "failed once":
                cut = straight in prompt
                return Reply('{"better": "first"}', finish="length" if cut else "stop")
            if way in ("first", "second"):
                return Reply(json.dumps({"better": way}))
            if (straight in prompt) == (swapped in prompt):
                raise LookupError("a prompt that pair_prompt did not make")
            first = straight in prompt
            return Reply(json.dumps({"better": "first" if first == (way == "a") else "second"}))

        api.now(answer)
        return read(learner.compare(model, question, contexts, a, b, seeds=seeds), api)

    plans = {
        "always picks the first": ["first"] * 5,
        "always picks the second": ["second"] * 5,
        "picks a, wherever it stands": ["a"] * 5,
        "picks b, wherever it stands": ["b"] * 5,
        "picks a with three seeds and goes by the place with two": [
            "a",
            "first",
            "a",
            "a",
            "second",
        ],
        "picks b with two seeds and goes by the place with three": [
            "first",
            "b",
            "first",
            "b",
            "first",
        ],
        "cannot be read": ["failed"] * 5,
        "picks a with two seeds and fails with three": [
            "a",
            "failed",
            "a",
            "failed once",
            "failed",
        ],
    }
    for name, plan in plans.items():
        made = asked(plan)
        outcomes = [_pair_outcome(way) for way in plan]
        winner = next((side for side in "ab" if outcomes.count(side) > 2), None)
        expect(
            len(api.asked) == 10 and sorted(api.seeds()) == sorted([*seeds, *seeds]),
            observed=f"{len(api.asked)} requests with the seeds {api.seeds()}, for {seeds}, to a "
            f"judge that {name}",
            expected="10: each seed once in each order",
            why="In one order alone, a judge that likes the first answer cannot be told from one "
            "that likes the better one. Whoever stands first wins the release.",
            hint="other-order",
        )
        failed = any(way.startswith("failed") for way in plan)
        expect_equal(
            [made["winner"], made["outcomes"]],
            [winner, outcomes],
            what=f"winner and outcomes with a judge that {name}",
            why="A reply that cannot be used must not decide who wins."
            if failed
            else "A choice that turns with the order says where an answer stood, and not how good "
            "it is.",
            hint="more-than-half" if failed else "other-order",
        )
        share = _first_share(plan)
        expect_equal(
            made["first_share"],
            share,
            abs_=1e-9,
            what=f"first_share with a judge that {name}",
            why="A share far from one half is how a judge that goes by the place is noticed.",
            hint="other-order",
        )


def test_kappa_takes_away_what_these_verdicts_reach_by_chance(learner, rng):
    cases: dict[str, tuple[list[bool], list[bool | None]]] = {
        "9 of 10 labels True, all verdicts True": ([True] * 36 + [False] * 4, [True] * 40),
        "2 of 10 labels True, all verdicts False": ([True] * 8 + [False] * 32, [False] * 40),
        "half of the labels True, verdicts at random": coin(rng, 60, 0.5, 0.5),
        "9 of 10 labels True, 4 of 5 verdicts right": coin(rng, 80, 0.9, 0.8),
        "3 of 10 labels True, 9 of 10 verdicts right": coin(rng, 50, 0.3, 0.9),
    }
    with_none = {}
    for name, (labels, verdicts) in list(cases.items()):
        lost = rng.random(len(labels)) < 0.3
        kept = [None if x else v for x, v in zip(lost, verdicts, strict=True)]
        with_none[f"{name}, {int(lost.sum())} of {len(lost)} verdicts None"] = (labels, kept)
    eight = [True] * 4 + [False] * 4
    for name, (labels, verdicts) in {
        **cases,
        "4 True, 4 False, all 8 verdicts right": (eight, list(eight)),
        "4 True, 4 False, all 8 verdicts wrong": (eight, [not x for x in eight]),
        **with_none,
        "4 True, 4 False, all 8 verdicts None": (eight, [None] * 8),
    }.items():
        value, low, high = true_kappa(labels, verdicts)
        made = read(learner.kappa(list(labels), list(verdicts)))
        accuracy = np.mean([x is y for x, y in zip(labels, verdicts, strict=True)])
        none = None in verdicts
        expect_equal(
            made["value"],
            value,
            abs_=1e-6,
            what=f"value of kappa, {name} ({accuracy:.0%} of all right)",
            why="An example without a verdict is one that the judge could not do. Left out, the "
            "rest looks better the more it fails."
            if none
            else "Where nearly all answers are good, saying yes to everything is right nearly "
            "always. Only what exceeds that is judgement.",
            hint="left-out" if none else "by-chance",
        )
        expect_equal(
            [made["low"], made["high"]],
            [low, high],
            abs_=1e-6,
            what=f"low and high of kappa, {name}",
            why="A handful of right verdicts proves little. An interval without a width says that "
            "it proves everything.",
            hint="few-examples",
        )
    expect_equal(
        read(learner.kappa([True] * 5, [True] * 5)),
        {"value": None, "low": None, "high": None},
        what="kappa of five labels and five verdicts that are all True",
        why="With one class only, agreement by chance is certain, and nothing can be said.",
        hint="by-chance",
    )
    for labels, verdicts in (([], []), ([True, False], [True])):
        expect_raises(
            ValueError,
            lambda labels=labels, verdicts=verdicts: learner.kappa(labels, verdicts),
            doing=f"{len(labels)} labels and {len(verdicts)} verdicts",
            why="A figure about pairs that do not belong together is about nothing.",
            hint="few-examples",
        )


def test_examples_without_a_verdict_stay_in_every_figure(learner, serve, domain, rng):
    examples = [*drawn(learner, domain, rng, 30), *drawn(learner, domain, rng, 6, split="open")]
    held_out = [e for e in examples if e.split == "held_out"]
    kinds = ("right", "right", "wrong", "truncated", "malformed", "no_evidence")
    ways = {e.item: str(rng.choice(kinds)) for e in held_out}
    for e, way in zip(held_out, kinds, strict=False):
        ways[e.item] = way

    def reply(example: Any, run: int, wording: str) -> Reply:
        way = ways.get(example.item, "right")
        if way == "truncated":
            return Reply(supported(example.item), finish="length")
        if way == "malformed":
            return Reply("supported")
        if way == "no_evidence":
            return Reply(json.dumps({"quote": "", "verdict": "supported"}))
        return says(example, example.grounded == (way == "right"))

    made, api = calibrated(learner, serve, examples, reply)
    count = Counter(ways[e.item] for e in held_out)
    given = {
        e.item: {"right": e.grounded, "wrong": not e.grounded}.get(ways[e.item]) for e in held_out
    }
    told = f"{len(held_out)} held-out examples, of which {_counted(count)}, and 6 open ones"
    expect_equal(
        made["examples"],
        len(held_out),
        what=f"examples of a calibration on {told}",
        why="A judge that fails at what is hard and is measured on the rest is measured on what "
        "is easy.",
        hint="left-out",
    )
    expect_equal(
        made["confusion"],
        confusion(held_out, given),
        what=f"confusion of a calibration on {told}",
        why="The matrix shows which mistake a judge makes: letting bad answers through, stopping "
        "good ones, or saying nothing.",
        hint="left-out",
    )
    expect_equal(
        [made["runs"], made["failures"]],
        [
            3 * len(held_out),
            {k: 3 * count[k] for k in ("truncated", "malformed", "no_evidence")},
        ],
        what=f"runs and failures of a calibration with 3 seeds on {told}",
        why="A judge that fails in one run of three may need another prompt, a schema or a larger "
        "budget. Nobody looks for it unless the failures are reported.",
        hint="left-out",
    )
    rules = sorted({e.rule for e in held_out})
    expect_equal(
        made["by_rule"],
        {
            r: [
                sum(given[e.item] is e.grounded for e in held_out if e.rule == r),
                sum(e.rule == r for e in held_out),
            ]
            for r in rules
        },
        what=f"by_rule of a calibration on {told}",
        why="A judge that is good on the whole may be blind to changed numbers. One mean hides it.",
        hint="left-out",
    )
    value, low, high = true_kappa([e.grounded for e in held_out], [given[e.item] for e in held_out])
    expect_equal(
        made["kappa"],
        {"value": value, "low": low, "high": high},
        abs_=1e-6,
        what=f"kappa of a calibration on {told}",
        why="An example without a verdict is a disagreement.",
        hint="left-out",
    )
    expect_equal(
        len(api.asked),
        3 * len(held_out),
        what=f"requests of a calibration with one wording and 3 seeds on {told}",
        why="With one wording nothing is chosen, so open examples would be judged for nothing.",
        hint="fresh-labels",
    )


def test_the_wording_is_chosen_on_open_labels_and_the_judge_measured_on_others(
    learner, serve, domain, rng
):
    held_out = drawn(learner, domain, rng, 20)
    opened = drawn(learner, domain, rng, 20, split="open")
    # Wrong verdicts by wording: on open examples, and on held-out ones.
    plan = {"lucky on the open ones": (2, 8), "good on the others": (6, 0), "poor": (9, 5)}
    wordings = [f"{name} {word(rng)}?" for name in rng.permutation(list(plan))]
    wrong = {
        w: {
            e.item
            for group, n in zip((opened, held_out), plan[w.rsplit(" ", 1)[0]], strict=True)
            for e in group[:n]
        }
        for w in wordings
    }
    lucky = next(w for w in wordings if w.startswith("lucky"))

    def reply(example: Any, run: int, wording: str) -> Reply:
        return says(example, example.grounded != (example.item in wrong[wording]))

    order = rng.permutation(40)
    examples = [[*held_out, *opened][i] for i in order]
    made, _ = calibrated(learner, serve, examples, reply, wordings=wordings)
    given = {e.item: e.grounded != (e.item in wrong[lucky]) for e in held_out}
    counts = {
        w: " and ".join(str(sum(e.item in wrong[w] for e in group)) for group in (opened, held_out))
        for w in wordings
    }
    about = (
        "20 open and 20 held-out examples, with a judge that is wrong about so many of either: "
        + ", ".join(f"{counts[w]} ({w!r})" for w in wordings)
    )
    expect_equal(
        [made["wording"], made["examples"]],
        [lucky, 20],
        what=f"wording and examples of a calibration on {about}",
        why="The wording that did best on some labels did so partly by luck. Measured on the same "
        "labels, the luck counts as skill; on next week's answers it is gone.",
        hint="fresh-labels",
    )
    value, low, high = true_kappa([e.grounded for e in held_out], [given[e.item] for e in held_out])
    expect_equal(
        [made["kappa"], made["confusion"]],
        [{"value": value, "low": low, "high": high}, confusion(held_out, given)],
        abs_=1e-6,
        what=f"kappa and confusion of a calibration on {about}",
        why="What was chosen on some labels is measured on others.",
        hint="fresh-labels",
    )
    for left, names in ((opened, wordings[:1]), (held_out, wordings[:2]), (examples, [])):
        expect_raises(
            ValueError,
            lambda left=left, names=names: calibrated(learner, serve, left, reply, wordings=names),
            doing=f"{len(names)} wordings, {sum(e.split == 'open' for e in left)} open and "
            f"{sum(e.split == 'held_out' for e in left)} held-out examples",
            why="Without labels of its own, a choice or a measurement is not made at all.",
            hint="fresh-labels",
        )


def test_a_judge_is_trusted_where_the_whole_interval_is_above_the_bar(
    learner, serve, domain, rng, figure
):
    even = drawn(learner, domain, rng, 30)
    skewed = drawn(learner, domain, rng, 30, grounded=27)
    few = drawn(learner, domain, rng, 8)
    some = {e.item for e in [*even[:2], *even[-2:]]}  # two of each label
    runs = {e.item: {int(x) for x in rng.choice(3, 1)} for e in even}

    def perfect(example: Any, run: int, wording: str) -> Reply:
        return says(example, example.grounded)

    def wavering(example: Any, run: int, wording: str) -> Reply:
        return says(example, example.grounded != (run in runs[example.item]))

    def yes(example: Any, run: int, wording: str) -> Reply:
        return says(example, True)

    def fair(example: Any, run: int, wording: str) -> Reply:
        return says(example, example.grounded != (example.item in some))

    def garbage(example: Any, run: int, wording: str) -> Reply:
        return Reply('{"verdict": "supported"')

    def unproven(example: Any, run: int, wording: str) -> Reply:
        return Reply(json.dumps({"quote": example.item.answer + "?", "verdict": "supported"}))

    judges = [
        ("is always right", perfect, even, 0.6, True),
        ("is wrong in one run of three, and right in most", wavering, even, 0.6, True),
        ("always says yes", yes, even, 0.6, False),
        ("always says yes, where 9 of 10 answers are grounded", yes, skewed, 0.6, False),
        ("writes garbage", garbage, even, 0.6, False),
        ("invents its quotes", unproven, even, 0.6, False),
        ("is wrong in 4 of 30", fair, even, 0.6, False),
        ("is wrong in 4 of 30", fair, even, 0.3, True),
        ("is always right, but on 8 examples only", perfect, few, 0.6, False),
    ]
    told = [judges[i][0] for i in (0, 3, 6)]
    for name, reply, examples, bar, trusted in judges:
        made, _ = calibrated(learner, serve, examples, reply, bar=bar)
        accuracy = sum(n for n, _ in made["by_rule"].values()) / len(examples)
        value, low, high = (made["kappa"][k] for k in ("value", "low", "high"))
        shown = "no kappa" if value is None else f"kappa {value:.2f} ({low:.2f} to {high:.2f})"
        expect(
            made["trusted"] is trusted,
            observed=f"trusted = {made['trusted']} for a judge that {name}: {shown}, "
            f"{accuracy:.0%} right of {len(examples)} examples, bar {bar:.2f}",
            expected=f"trusted = {trusted}",
            why="A judge that nobody may use is no gate either: releases go out unjudged."
            if trusted
            else "Its verdicts stop releases and let them out. What it is surely worth counts, not "
            "what it may be worth with luck.",
            hint="surely-good",
        )
        numbers = [f"{x:.2f}" for x in (value, low, high, bar) if x is not None]
        lacks = [n for n in numbers if n not in made["reason"]]
        expect(
            not lacks and ("do not trust" in made["reason"]) is not trusted,
            observed=f"the reason {made['reason']!r} for a judge that {name}",
            expected=f"a sentence with {', '.join(numbers)}"
            + (" and without" if trusted else " and with")
            + " 'do not trust'",
            why="The sentence is what somebody reads in the pipeline's log who was not there.",
            hint="surely-good",
        )
        if bar == 0.6 and name in told:
            figure(f"accuracy of a judge that {name}", accuracy)
            figure(f"kappa of a judge that {name}", value)


def test_an_untrusted_judge_cannot_be_made_a_gate(learner, serve, domain, rng):
    examples = drawn(learner, domain, rng, 30)
    broken: set[Any] = set()

    def reply(example: Any, run: int, wording: str) -> Reply:
        return Reply("{") if example.item in broken else says(example, example.grounded)

    def yes(example: Any, run: int, wording: str) -> Reply:
        return says(example, True)

    wording = f"Is it {word(rng)}?"
    bad, _, _ = calibration_of(learner, serve, examples, yes)
    good, api, model = calibration_of(learner, serve, examples, reply, wordings=[wording])
    other = learner.EngineModel(api.base_url, "another-model")
    for judge, made, about, names in (
        (model, bad, "a judge that always says yes", ("do not trust",)),
        (
            other,
            good,
            f"the calibration of {MODEL}, for the model 'another-model'",
            (MODEL, "another-model"),
        ),
    ):
        for name in names:
            expect_raises(
                learner.UntrustedJudge,
                lambda judge=judge, made=made: learner.JudgeMetric(judge, made),
                doing=f"JudgeMetric with {about}",
                mentions=name,
                why="A warning in a log stops nobody. A gate that a worthless judge keeps is worse "
                "than none: it is believed.",
                hint="refuse",
            )
    (metric,) = copy_metrics([learner.JudgeMetric(model, good)])  # as evaluate does
    expect(
        isinstance(metric, BaseMetric),
        observed=f"a {type(metric).__name__}",
        expected="a BaseMetric of DeepEval",
        why="assert_test and evaluate take metrics.",
        hint="refuse",
    )
    true = next(e for e in examples if e.grounded)
    false = next(e for e in examples if not e.grounded)
    lost = next(e for e in examples if e.grounded and e.item != true.item)
    broken.add(lost.item)
    for example, score, name in (
        (true, 1.0, "finds supported"),
        (false, 0.0, "finds unsupported"),
        (lost, 0.0, "gives no readable reply about"),
    ):
        before = len(api.asked)
        case = as_case(example.item)
        for run in (metric.measure, lambda c: asyncio.run(metric.a_measure(c))):
            made = run(case)
            raise_from(api)
            expect_equal(
                [made, metric.score, metric.success, metric.is_successful(), bool(metric.reason)],
                [score, score, score == 1.0, score == 1.0, True],
                what="what measure returned, score, success, is_successful() and whether there is "
                f"a reason, for an answer that the judge {name}",
                why="Where the judge said nothing, nothing was checked. An answer that nobody "
                "checked does not pass."
                if example is lost
                else "The gate does what the judge says.",
                hint="no-verdict",
            )
        expect_equal(
            sorted(api.seeds()[before:]),
            sorted([*good.seeds, *good.seeds]),
            what="seeds of the requests for measuring an answer twice, with a calibration of seeds "
            f"{good.seeds}",
            why="What was calibrated is the judge with these runs and this wording. Another one "
            "has another worth.",
            hint="no-verdict",
        )
        if score == 1.0:
            quote = json.loads(supported(example.item))["quote"]
            expect(
                quote in str(metric.reason),
                observed=f"the reason {show(metric.reason)}",
                expected=f"one with the evidence {quote!r}",
                why="Who doubts the verdict wants to see what it rests on.",
                hint="no-verdict",
            )
    case = as_case(true.item)
    case.retrieval_context = []
    expect_raises(
        MissingTestCaseParamsError,
        lambda: metric.measure(case),
        doing="a test case without retrieval_context",
        why="Without sources nothing can be grounded in them, and nothing was judged.",
        hint="no-verdict",
    )


LIVE_EXAMPLES = 6
LIVE_SEEDS = (1, 2, 3)
LIVE_BAR = 0.2
"""So few examples cannot prove more: if all are right, the interval begins at 0.22."""


@pytest.mark.limit(240)
def test_the_real_model_is_judged_and_gets_what_it_deserves(
    learner, serve, domain, engine, rng, figure
):
    examples = live_examples(learner, domain, rng)
    forward = Forward(engine.base_url)
    api = serve(forward)
    model = learner.EngineModel(api.base_url, engine.model, max_tokens=64)
    wording = learner.WORDINGS[0]
    try:
        made = learner.calibrate(
            model, examples, seeds=LIVE_SEEDS, wordings=[wording], bar=LIVE_BAR
        )
        item = examples[0].item
        pair = (item.answer, examples[-1].item.answer)
        choice = read(learner.compare(model, item.question, item.contexts, *pair, seeds=(1,)))
    except learner.JudgeUnavailable as error:
        if api.error is None:
            raise
        raise EngineError(f"The engine failed while it judged: {api.error}") from error
    shown = read(made)
    outcomes = {e.item: [] for e in examples}
    prompts = {learner.answer_prompt(e.item, wording): e.item for e in examples}
    for body, reply in forward.heard:
        found = prompts.get(str(body["messages"][-1]["content"]))
        if found is not None:
            outcomes[found].append(outcome_of(found, reply))
    asked = sum(map(len, outcomes.values()))
    expect_equal(
        [asked, shown["runs"]],
        [LIVE_EXAMPLES * len(LIVE_SEEDS)] * 2,
        what=f"requests about {LIVE_EXAMPLES} answers with {len(LIVE_SEEDS)} seeds, and runs in "
        "the report",
        why="What the report counts is what happened.",
        hint="every-run",
    )
    counts = Counter(o for each in outcomes.values() for o in each)
    failed = {k: counts[k] for k in ("truncated", "malformed", "no_evidence")}
    expect_equal(
        shown["failures"],
        failed,
        what=f"failures of {engine.model} in {asked} runs",
        why="How often a judge cannot be read is the first thing to know about it.",
        hint="left-out",
    )
    given = {item: majority(each)[0] for item, each in outcomes.items()}
    value, low, high = true_kappa([e.grounded for e in examples], [given[e.item] for e in examples])
    expect_equal(
        [shown["confusion"], shown["kappa"]],
        [confusion(examples, given), {"value": value, "low": low, "high": high}],
        abs_=1e-6,
        what=f"confusion and kappa of {engine.model}, by the replies that it really gave",
        why="The figures that decide on trust have to be those of this judge.",
        hint="left-out",
    )
    trusted = low is not None and low >= LIVE_BAR
    expect_equal(
        shown["trusted"],
        trusted,
        what=f"trusted, for {engine.model} with a kappa of "
        + ("none" if value is None else f"{value:.2f} ({low:.2f} to {high:.2f})"),
        why="That this judge must not be used is a result, and the harness has to say so.",
        hint="surely-good",
    )
    if not trusted:
        expect_raises(
            learner.UntrustedJudge,
            lambda: learner.JudgeMetric(model, made),
            doing=f"JudgeMetric with {engine.model}, which is not trusted",
            why="A gate that a worthless judge keeps is worse than none: it is believed.",
            hint="refuse",
        )
    right = sum(v is e.grounded for e, v in ((e, given[e.item]) for e in examples))
    figure(f"kappa of {engine.model}", 0.0 if value is None else value)
    figure(f"lower end of its interval (bar {LIVE_BAR})", 0.0 if low is None else low)
    figure(f"accuracy of {engine.model}", right / len(examples))
    figure(f"runs of {engine.model} that failed", sum(failed.values()) / asked)
    if choice["first_share"] is not None:
        figure(f"first answers preferred by {engine.model}, both orders", choice["first_share"])


def drawn(
    learner: Any,
    domain: str,
    rng: np.random.Generator,
    count: int,
    *,
    split: str = "held_out",
    grounded: int | None = None,
) -> list[Any]:
    """Labelled answers at random, grounded ones first; half of them unless told how many."""
    wanted = {True: count - count // 2 if grounded is None else grounded}
    wanted[False] = count - wanted[True]
    every = load_labelled(domain)
    made = []
    for label, n in wanted.items():
        pool = [a for a in every if a.split == split and a.grounded is label]
        for i in rng.choice(len(pool), n, replace=False):
            a = pool[int(i)]
            item = learner.Item(a.question, contexts_of(a, domain), a.answer)
            made.append(learner.Example(item, a.grounded, a.rule, a.split))
    return made


def live_examples(learner: Any, domain: str, rng: np.random.Generator) -> list[Any]:
    """Held-out answers of one claim with two sentences as their source: a small model reads slowly.

    Of the grounded ones these are answers that stand in the source word for word, so that nothing
    they rest on is left out.
    """
    documents = {d.id: d for d in load_documents(domain, superseded=True)}
    made = []
    for label in (True, False):
        pool = [
            a
            for a in load_labelled(domain, "held_out")
            if a.grounded is label
            and len(a.claims) == 1
            and a.claims[0].document in a.contexts
            and (not label or a.answer in documents[a.claims[0].document].sentences)
        ]
        for i in rng.choice(len(pool), LIVE_EXAMPLES // 2, replace=False):
            a = pool[int(i)]
            sentences = documents[a.claims[0].document].sentences
            near = [len({*a.answer.split()} & {*s.split()}) for s in sentences]
            start = min(int(np.argmax(near)), len(sentences) - 2)
            item = learner.Item(a.question, (" ".join(sentences[start : start + 2]),), a.answer)
            made.append(learner.Example(item, label, a.rule, "held_out"))
    return made


def calibration_of(
    learner: Any,
    serve: Serve,
    examples: Sequence[Any],
    reply: Scripted,
    *,
    wordings: Sequence[str] = ("Is it so?",),
    bar: float = 0.6,
) -> tuple[Any, ChatApi, Any]:
    """A scripted judge's calibration with 3 seeds as it came, its API, and its model."""
    seeds = (11, 12, 13)
    known = {learner.answer_prompt(e.item, w): (e, w) for e in examples for w in wordings}

    def answer(prompt: str, body: Mapping[str, Any]) -> Reply:
        found = known.get(prompt)
        if found is None:
            raise LookupError("a prompt that answer_prompt did not make")
        seed = body.get("seed")
        return reply(found[0], seeds.index(seed) if seed in seeds else 0, found[1])

    api = serve(answer)
    model = learner.EngineModel(api.base_url, MODEL)
    try:
        made = learner.calibrate(model, examples, seeds=seeds, wordings=wordings, bar=bar)
    except learner.JudgeUnavailable:
        raise_from(api)
        raise
    raise_from(api)
    return made, api, model


def calibrated(
    learner: Any, serve: Serve, examples: Sequence[Any], reply: Scripted, **how: Any
) -> tuple[dict[str, Any], ChatApi]:
    """The same in plain values."""
    made, api, _ = calibration_of(learner, serve, examples, reply, **how)
    return read(made), api


def judged(learner: Any, api: ChatApi, item: Any, *, seeds: Sequence[int]) -> dict[str, Any]:
    """A verdict in plain values."""
    if api.model is None:
        api.model = learner.EngineModel(api.base_url, MODEL)
    return read(learner.judge_answer(api.model, item, seeds=seeds), api)


def read(made: Any, api: ChatApi | None = None) -> dict[str, Any]:
    """What came back, in plain values."""
    if api is not None:
        raise_from(api)
    found = plain(made)
    if not isinstance(found, dict):
        fail(
            observed=show(found),
            expected="the dataclass that the signature names",
            why="Callers read its fields.",
        )
    return found


def raise_from(api: ChatApi) -> None:
    """Fail if the scripted judge was asked something that it does not know."""
    if isinstance(api.error, LookupError):
        fail(
            observed=f"a request with {api.error.args[0]}: "
            f"{show(api.asked[-1].get('messages'), 300)}",
            expected="the prompt of answer_prompt or pair_prompt as the one user message",
            why="A judge is calibrated for one prompt. Asked in another way it is another judge.",
            hint="what-was-sent",
        )
    if api.error is not None:
        raise RuntimeError("the scripted judge is broken") from api.error


def nothing(prompt: str, body: Mapping[str, Any]) -> Reply:
    """Says nothing."""
    return Reply(None)


def supported(item: Any) -> str:
    """A reply in favour, with evidence."""
    quote = " ".join(item.contexts[-1].split()[3:9])
    return json.dumps({"quote": quote, "verdict": "supported"})


def unsupported() -> str:
    """A reply against."""
    return json.dumps({"quote": "", "verdict": "unsupported"})


def says(example: Any, grounded: bool) -> Reply:
    """A usable reply."""
    return Reply(supported(example.item) if grounded else unsupported())


def majority(outcomes: Sequence[str]) -> tuple[bool | None, float]:
    """Verdict and agreement of runs that ended so."""
    for vote, grounded in (("supported", True), ("unsupported", False)):
        share = outcomes.count(vote) / len(outcomes)
        if share > 0.5:
            return grounded, share
    return None, 0.0


def outcome_of(item: Any, reply: Reply) -> str:
    """What a reply of the real model is by the contract."""
    if reply.finish != "stop":
        return "truncated"
    try:
        said = json.loads(reply.text or "")
        quote, verdict = said["quote"], said["verdict"]
    except (ValueError, KeyError, TypeError):
        return "malformed"
    if set(said) != {"quote", "verdict"} or type(quote) is not str or len(quote) > 160:
        return "malformed"
    if verdict not in ("supported", "unsupported"):
        return "malformed"
    proven = stands_in(quote, item.contexts)
    return "no_evidence" if verdict == "supported" and not proven else verdict


def stands_in(quote: str, contexts: Sequence[str]) -> bool:
    """Whether a quote is evidence by the contract."""
    words = quote.casefold().split()
    wanted = re.escape(" ".join(words))
    # What is between two letters or digits is inside a word.
    inside = r"(?<=[^\W_])(?=[^\W_])"
    whole = re.compile(f"(?!{inside}){wanted}(?!{inside})")
    return len(words) >= 3 and any(whole.search(" ".join(c.casefold().split())) for c in contexts)


def inside_a_word(
    rng: np.random.Generator, words: Sequence[str], contexts: Sequence[str]
) -> tuple[str, str]:
    """Two quotes of four words: the first lacks its first letter, the second its last."""
    made: tuple[list[str], list[str]] = ([], [])
    for start in range(len(words) - 3):
        four = " ".join(words[start : start + 4])
        for quotes, quote, cut in (
            (made[0], four[1:], words[start]),
            (made[1], four[:-1], words[start + 3]),
        ):
            if cut.isalnum() and len(cut) > 1 and not stands_in(quote, contexts):
                quotes.append(quote)
    begun, ended = (str(rng.choice(quotes)) for quotes in made)
    return begun, ended


def true_kappa(
    labels: Sequence[bool], verdicts: Sequence[bool | None]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Kappa by scikit-learn, and Wilson's interval of SciPy through the same formula."""
    codes = {True: 1, False: 0, None: 2}
    value = cohen_kappa_score([codes[x] for x in labels], [codes[x] for x in verdicts])
    n = len(labels)
    same = sum(x is y for x, y in zip(labels, verdicts, strict=True))
    chance = sum(list(labels).count(k) * list(verdicts).count(k) for k in (True, False)) / n**2
    if math.isnan(value) or chance == 1:
        return None, None, None
    ends = binomtest(same, n).proportion_ci(0.95, method="wilson")
    low, high = ((float(p) - chance) / (1 - chance) for p in (ends.low, ends.high))
    return float(value), low, high


def confusion(examples: Sequence[Any], given: Mapping[Any, bool | None]) -> dict[str, Any]:
    """Labels against verdicts."""
    names = {True: "grounded", False: "ungrounded", None: "none"}
    return {
        names[label]: {
            name: sum(e.grounded is label and given[e.item] is verdict for e in examples)
            for verdict, name in names.items()
        }
        for label in (True, False)
    }


def coin(
    rng: np.random.Generator, n: int, grounded: float, right: float
) -> tuple[list[bool], list[bool | None]]:
    """Labels, and verdicts that are right so often; both kinds of label occur."""
    labels = [True, False, *(bool(x) for x in rng.random(n - 2) < grounded)]
    hit = rng.random(n) < right
    return labels, [x if h else not x for x, h in zip(labels, hit, strict=True)]


def as_case(item: Any) -> LLMTestCase:
    return LLMTestCase(
        input=item.question, actual_output=item.answer, retrieval_context=list(item.contexts)
    )


def word(rng: np.random.Generator) -> str:
    """A word that no document holds."""
    return (
        "".join(rng.choice(list("bdfgklmnprstvz"), 3)) + "o" + "".join(rng.choice(list("aeiou"), 2))
    )


def _sent_schema(body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema that a request holds the engine to."""
    asked = body.get("response_format") or {}
    found = asked.get("json_schema") if asked.get("type") == "json_schema" else None
    return (found or {}).get("schema") or {}


def _pair_outcome(way: str) -> str:
    if way in ("a", "b"):
        return way
    return "position" if way in ("first", "second") else "failed"


def _first_share(plan: Sequence[str]) -> float | None:
    """Of the usable replies, the share for the first; a judge that picks a or b has one of two."""
    firsts = {"first": 2, "second": 0, "a": 1, "b": 1, "failed": 0, "failed once": 1}
    usable = {"failed": 0, "failed once": 1}
    total = sum(usable.get(way, 2) for way in plan)
    return sum(firsts[way] for way in plan) / total if total else None


def _counted(ways: Counter[str]) -> str:
    return ", ".join(f"{n} {way}" for way, n in ways.most_common())
