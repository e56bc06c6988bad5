"""Grade a class: other people's code, in a sandbox, with nothing lost.

    make grade SUBMISSIONS=<folder> OUT=<folder>

What comes in is collected (`collect`), each learner's labs are graded in a sandbox (`sandbox`,
`pool`) with this checkout's own checks, every verdict is written down as it comes (`journal`),
and what an instructor needs is made from those records (`gradebook`, `exports`, `pages`).
"""
