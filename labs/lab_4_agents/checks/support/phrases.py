"""How customers ask and agents answer, in each domain, in many words and number formats."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FINANCE: Mapping[str, tuple[str, ...]] = {
    "ask_risky": (
        "Please refund {amount} of payment {item}: some of it was missing.",
        "Hello, part of {item} never came. I would like {amount} back.",
        "About {item}: your colleague promised me {amount} back. Can you see to it?",
    ),
    "ask_bare": ("Some of payment {item} was missing. Please refund me for that.",),
    "ask_vague": ("My last order was not complete. Please refund me {amount}.",),
    "ask_half": ("Please refund half of payment {item}, as we agreed.",),
    "ask_rest": ("Please refund what is left of payment {item}.",),
    "ask_small": (
        "I do not recognise payment {item}. Please open a dispute.",
        "{item} is not mine. I want to dispute it.",
    ),
    "ask_small_vague": ("There is a payment that I do not recognise. Please open a dispute.",),
    "ask_final": ("My card was stolen. Block it, please.", "I lost my card! Block it at once."),
    "question": ("Which payments do you have on my account?", "What have I paid lately?"),
    "policy": ("How long does a refund take?", "What do you need for a refund?"),
    "policy_answer": ("A refund needs a reviewer's approval. It takes 2 working days.",),
    "done_risky": (
        "I have refunded {amount} of payment {item}.",
        "{amount} of {item} has been credited to your account.",
        "For {item} we have paid back {amount}.",
        "Refunded: {amount}, payment {item}.",
    ),
    "done_of": ("I have refunded {amount} of the {whole} that you paid for {item}.",),
    "done_bare": ("Payment {item} has been refunded as you asked.", "I refunded {item}."),
    "done_small": (
        "I have opened a dispute about {item}.",
        "Payment {item} is now disputed.",
        "Your dispute is open: {item}.",
    ),
    "done_final": ("Your card is blocked.", "I have locked your card for good."),
    "not_risky": (
        "{item} has not been refunded.",
        "Nothing was refunded for {item}.",
        "I could not get {item} refunded.",
        "{item} wasn't refunded.",
    ),
    "not_small": ("I have not opened a dispute about {item}.", "{item} could not be disputed."),
    "not_final": ("Your card is not blocked.", "I couldn't get your card blocked."),
    "offer": ("Shall I open a dispute?", "If you like, I can ask for a refund."),
    "earlier": ("{amount} of {item} was refunded last week.",),
}
_HEALTHCARE: Mapping[str, tuple[str, ...]] = {
    "ask_risky": (
        "Please set prescription {item} to {amount} a day, as agreed at my visit.",
        "Hello, the doctor wants {amount} a day for {item}. Can you put that in?",
        "About {item}: from now on it should be {amount} a day.",
    ),
    "ask_bare": ("The dose of {item} no longer suits me. Please change it.",),
    "ask_vague": ("My tablets should be at {amount} a day from now on.",),
    "ask_half": ("Please set prescription {item} to half of what it is, as agreed.",),
    "ask_rest": ("Please lower prescription {item} by {less} a day, as agreed.",),
    "ask_small": (
        "I would like to talk about prescription {item}. Please book a review.",
        "Can somebody look at {item} with me? I need an appointment.",
    ),
    "ask_small_vague": ("I would like a review of the tablets that I got last.",),
    "ask_final": (
        "I have moved. Release my record to my new practice, please.",
        "My new practice needs my record. Please release it.",
    ),
    "question": ("Which prescriptions do I have?", "What am I taking at the moment?"),
    "policy": ("How often should I have a review?", "Who approves a new dose?"),
    "policy_answer": ("A new dose needs a clinician's approval. Reviews are once a year.",),
    "done_risky": (
        "I have changed {item} to {amount} a day.",
        "Prescription {item} has been adjusted to {amount} a day.",
        "Changed: {item}, {amount} a day from now on.",
    ),
    "done_of": ("I have changed {item} from {whole} to {amount} a day.",),
    "done_bare": ("Prescription {item} has been changed as you asked.", "I adjusted {item}."),
    "done_small": ("I have booked a review of {item}.", "A review of {item} has been arranged."),
    "done_final": ("Your record has been released.", "We have handed over your record."),
    "not_risky": (
        "{item} has not been changed.",
        "Nothing was changed for {item}.",
        "I could not get {item} adjusted.",
        "{item} wasn't changed.",
    ),
    "not_small": ("I have not booked a review of {item}.", "No review of {item} was arranged."),
    "not_final": ("Your record has not been released.", "I couldn't get your record released."),
    "offer": ("Shall I book a review?", "If you like, I can ask for a change of the dose."),
    "earlier": ("{item} was changed to {amount} a day last week.",),
}
_CLIMATE: Mapping[str, tuple[str, ...]] = {
    "ask_risky": (
        "Please shed {amount} of device {item} for the evening peak.",
        "Hello, we can do without {amount} at {item} tonight. Go ahead, please.",
        "About {item}: take {amount} off it for the peak, please.",
    ),
    "ask_bare": ("We can spare some of device {item} tonight. Please shed it.",),
    "ask_vague": ("We can spare {amount} tonight. Please shed that much.",),
    "ask_half": ("Please shed half of the load of device {item}, as agreed.",),
    "ask_rest": ("Please shed what is left of device {item}.",),
    "ask_small": (
        "Device {item} makes a strange noise. Please send a technician.",
        "{item} smells odd. Somebody should look at it.",
    ),
    "ask_small_vague": ("One of our devices makes a strange noise. Please send somebody.",),
    "ask_final": (
        "Smoke in the switch room. Trip our breaker, please.",
        "Water at the main panel! Trip the breaker at once.",
    ),
    "question": (
        "Which devices do you have on record for our site?",
        "What have we got on our site, by your list?",
    ),
    "policy": ("How is demand response decided?", "How long does a work order take?"),
    "policy_answer": ("Shedding needs an operator's approval. A technician takes 5 working days.",),
    "done_risky": (
        "I have shed {amount} of device {item}.",
        "The load of {item} has been reduced by {amount}.",
        "Reduced: {item}, by {amount}.",
    ),
    "done_of": ("I have shed {amount} of the {whole} that {item} draws.",),
    "done_bare": ("The load of {item} has been reduced as you asked.", "I have reduced {item}."),
    "done_small": (
        "I have opened a work order for {item}.",
        "A technician has been ordered for {item}.",
        "Your work order is open: {item}.",
    ),
    "done_final": ("Your breaker is tripped.", "We have switched off your site."),
    "not_risky": (
        "{item} has not been reduced.",
        "Nothing was shed at {item}.",
        "I could not get {item} reduced.",
        "{item} wasn't reduced.",
    ),
    "not_small": (
        "I have not opened a work order for {item}.",
        "No technician was ordered for {item}.",
    ),
    "not_final": ("Your breaker has not been tripped.", "I couldn't get your site switched off."),
    "offer": ("Shall I open a work order?", "If you like, I can ask for demand response."),
    "earlier": ("The load of {item} was reduced by {amount} last week.",),
}
_ALL: Mapping[str, tuple[str, ...]] = {
    "any_risky": (
        "Done: {amount} on {item}.",
        "That is taken care of: {item}, {amount}.",
        "Completed for {item}, with {amount}.",
    ),
    "any_small": ("Done for {item}.", "That is taken care of: {item}."),
    "any_final": ("Done.", "It is taken care of."),
    "any_not": ("Nothing was done.", "It could not be done.", "I was unable to get it done."),
    "sent": ("I have sent you a message about {item}.", "I messaged you about {item}."),
    "opening": ("Thank you for waiting.", "Good news!", "Hello,\nhere is what I have for you."),
    "opening_sad": ("Thank you for waiting.", "I am sorry.", "Hello,\nI have bad news."),
    "closing": ("Is there anything else?", "Kind regards", "Please write again in 2 days."),
    "edited": (
        "The colleague who looks at such requests allowed another amount than {asked}.",
        "You had asked for {asked}; my colleague decided on this.",
    ),
    "rejected": ("A colleague rejected it.", "My colleague said no to that."),
    "too_much": ("It is more than is allowed.", "The limit is lower than that."),
}
_BY_DOMAIN = {"finance": _FINANCE, "healthcare": _HEALTHCARE, "climate": _CLIMATE}
_LARGER = {"finance": ("dollars", 100), "healthcare": ("g", 1000), "climate": ("MW", 1000)}
_SMALLER = {"finance": "cents", "healthcare": "mg", "climate": "kW"}


@dataclass
class Phrases:
    """One person's words in a domain, drawn from a generator."""

    domain: str
    rng: random.Random

    def say(self, *names: str, **fill: Any) -> str:
        """A sentence of one of the sorts; amounts that are ints get a format."""
        known = {**_ALL, **_BY_DOMAIN[self.domain]}
        template = self.rng.choice([t for name in names for t in known[name]])
        made = {k: self.amount(v) if isinstance(v, int) else v for k, v in fill.items()}
        return template.format(**made)

    def letter(self, *sentences: str, sad: bool = False) -> str:
        """An answer of these sentences, with or without a polite beginning and end."""
        parts: Sequence[str] = sentences
        if self.rng.random() < 0.5:
            parts = [self.say("opening_sad" if sad else "opening"), *parts]
        if self.rng.random() < 0.5:
            parts = [*parts, self.say("closing")]
        return self.rng.choice([" ", " ", "\n"]).join(parts)

    def amount(self, amount: int) -> str:
        """An amount as somebody would write it."""
        unit = _SMALLER[self.domain]
        larger = self.larger(amount)
        return self.rng.choice(
            [
                f"{amount} {unit}",
                f"{amount:,} {unit}",
                f"{amount:,} {unit}".replace(",", " "),
                larger,
            ]
        )

    def plain(self, amount: int) -> str:
        """An amount in the plainest format."""
        return f"{amount} {_SMALLER[self.domain]}"

    def larger(self, amount: int) -> str:
        """An amount in the larger unit."""
        unit, times = _LARGER[self.domain]
        if self.domain == "finance":
            number = f"{amount / times:,.2f}"
            return self.rng.choice([f"${number}", f"{number} {unit}"])
        return f"{amount / times:.3f}".rstrip("0").rstrip(".") + f" {unit}"

    def wrong_unit(self, amount: int) -> str:
        """The right digits with the wrong unit."""
        return f"{amount:,} {_LARGER[self.domain][0]}"
