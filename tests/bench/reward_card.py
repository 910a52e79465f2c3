"""Makes the reward card (recipes/reward_card.py): agreement, RadJudge, errors, gaming, cost.

    make bench NAME=reward_card

Writes outputs/reward_card. A figure is not a test: exits 0 whether or not the bars hold.
"""

from recipes.cli import run
from recipes.reward_card import main

if __name__ == "__main__":
    run(main)
