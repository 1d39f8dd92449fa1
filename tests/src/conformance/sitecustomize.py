"""For both engines: chance always takes the first, so that examples that draw lots can be compared."""

import random

random.choice = lambda options: options[0]
