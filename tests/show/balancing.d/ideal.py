"""The best possible balancing: every arrival goes to the pod with the fewest sessions at that
moment.
"""

import heapq
import random


def scale_out(old, new, sessions, mean_life, cold_time=0.0, seed=0):
    """Returns seconds and arrivals until each of the `new` pods holds 90 % of the mean.

    Sessions end at random and are replaced at once. Until a new pod is `cold_time` old, it accepts
    at most three times its fair share of arrivals.
    """
    seeded = random.Random(seed)
    counts = [sessions // old] * old + [0] * new
    ends = [(seeded.expovariate(1 / mean_life), index % old) for index in range(sessions)]
    heapq.heapify(ends)
    arrivals, taken = 0, [0] * len(counts)
    while min(counts[old:]) < 0.9 * sessions / len(counts):
        now, pod = heapq.heappop(ends)
        counts[pod] -= 1
        arrivals += 1
        most = 3 * arrivals / len(counts) if now < cold_time else sessions
        allowed = [pod for pod in range(len(counts)) if pod < old or taken[pod] < most]
        pod = min(allowed, key=lambda pod: (counts[pod], seeded.random()))
        counts[pod] += 1
        taken[pod] += 1
        heapq.heappush(ends, (now + seeded.expovariate(1 / mean_life), pod))
    return now, arrivals


def scale_outs(*arguments, runs=25, **settings):
    """Simulates several scale-outs. Returns the shortest, mean and longest time, and the mean
    number of arrivals.
    """
    found = [scale_out(*arguments, seed=seed, **settings) for seed in range(runs)]
    seconds = [one for one, _ in found]
    return (
        min(seconds),
        sum(seconds) / runs,
        max(seconds),
        sum(arrivals for _, arrivals in found) / runs,
    )
