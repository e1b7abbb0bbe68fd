"""The server under load: how fast it answers, guided and unguided, and whether ten times too much breaks it.

    python bench/serving.py
    python bench/serving.py --clients 1 8 --seconds 10 --ramp 20

Starts ``trimtab serve`` in a process of its own on loopback, with a guide for two objectives, and talks to it over
HTTP from this one. Each request asks for another mixture, strength and seed; what it must answer was written before,
one answer at a time, by the library in this process, so a wrong or mixed answer cannot hide.

1. For each number of clients, each asking again as soon as it is answered: requests and tokens a second, time to the
   first token and between tokens, guided and unguided (the same server, model ``NAME:plain``).
2. A ramp: requests arrive on their own clock, from none up to ten times what the server can do, whoever waits; some
   clients hang up in the middle. Every answer is 200 (and right), 429 or 503. Afterwards nothing may be held, and the
   time until an answer comes as promptly as before is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from serving_bench.running import main

if __name__ == "__main__":
    main()
