"""How much of a 1.5B model's fine-tune does a 0.5B guide recover, and at what speed?

Run ``python studies/weak_to_strong/study.py`` after ``models.py``; ``--plan`` says what that costs. Whatever is done is
found again in ``--work-dir``. ``--smoke`` runs everything on SmolLM2 in two minutes at a size that says nothing.

On the same pairs, with the same LoRA: an ARM (GenARM) and a DPO policy on the 0.5B model, and both on the 1.5B model. Then the
frozen 1.5B base answers the same prompts with the same seeds plain, pulled by the 0.5B guides, and fine-tuned (the
ceiling). A scorer judges that saw none of the guides' pairs. Speed is measured by itself: ``--speed``, on an idle machine.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from weak_to_strong.steps import main

if __name__ == "__main__":
    main(sys.argv[1:], __doc__)
