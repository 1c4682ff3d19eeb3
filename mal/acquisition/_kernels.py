"""Compiled loops, kept in numba's on-disk cache. Imported at first use: importing numba takes most of a second.

float32 features are subtracted and summed in float64, so every pair of points has one distance, however it is
reached.
"""

import heapq

import numpy as np

from mal.process.compiled import compiled


@compiled(fastmath=True)
def squared_distance(x_D, y_D):  # type: ignore[no-untyped-def]
    """Squared Euclidean distance of two float32 rows, in float64."""
    total = 0.0
    for d in range(x_D.size):
        step = np.float64(x_D[d]) - np.float64(y_D[d])
        total += step * step
    return total


@compiled(fastmath=True)
def dot(x_D, y_D):  # type: ignore[no-untyped-def]
    """Inner product of two rows, in float64."""
    total = 0.0
    for d in range(x_D.size):
        total += np.float64(x_D[d]) * np.float64(y_D[d])
    return total


@compiled(fastmath=True)
def _lowest(products_B, norms_B):  # type: ignore[no-untyped-def]
    low = norms_B[0] - np.float32(2) * products_B[0]
    for j in range(1, norms_B.size):
        value = norms_B[j] - np.float32(2) * products_B[j]
        low = value if value < low else low
    return low


@compiled()
def fold_products(products_RB, norms_B, first, rows_R, best_N, second_N, nearest_N):  # type: ignore[no-untyped-def]
    """Fold |c|^2 - 2 x.c of a block of centres into each row's two lowest values and the nearest centre."""
    for r in range(rows_R.size):
        i = rows_R[r]
        # Vectorised first: few rows have anything new in a block, and only those take the loop with branches.
        if not _lowest(products_RB[r], norms_B) < second_N[i]:
            continue
        best, second, nearest = best_N[i], second_N[i], nearest_N[i]
        for j in range(norms_B.size):
            value = norms_B[j] - np.float32(2) * products_RB[r, j]
            if value < best:
                second, best, nearest = best, value, first + j
            elif value < second:
                second = value
        best_N[i], second_N[i], nearest_N[i] = best, second, nearest


@compiled()
def _count_below(products_B, norms_B, value):  # type: ignore[no-untyped-def]
    """How many of a row's values are below one; without fastmath, as that may be infinite."""
    count = np.int32(0)
    for j in range(norms_B.size):
        count += np.int32(norms_B[j] - np.float32(2) * products_B[j] < value)
    return count


@compiled(fastmath=True)
def _dot32(x_D, y_D):  # type: ignore[no-untyped-def]
    """Inner product of two rows, in float32."""
    total = np.float32(0)
    for d in range(x_D.size):
        total += x_D[d] * y_D[d]
    return total


@compiled()
def fold_near(  # type: ignore[no-untyped-def]
    most_RB, features_ND, centres_BD, norms_B, first, rows_R, best_N, second_N, nearest_N, limit
):
    """As `fold_products`, from upper bounds of the products: only pairs that may be nearer are multiplied out.

    Returns the rows with more than `limit` such pairs, for which nothing was done.
    """
    left, count = np.empty_like(rows_R), 0
    for r in range(rows_R.size):
        i = rows_R[r]
        near = _count_below(most_RB[r], norms_B, second_N[i])
        if near == 0:
            continue
        if near > limit:
            left[count] = i
            count += 1
            continue
        best, second, nearest = best_N[i], second_N[i], nearest_N[i]
        for j in range(norms_B.size):
            if not norms_B[j] - np.float32(2) * most_RB[r, j] < second:
                continue
            value = norms_B[j] - np.float32(2) * _dot32(features_ND[i], centres_BD[j])
            if value < best:
                second, best, nearest = best, value, first + j
            elif value < second:
                second = value
        best_N[i], second_N[i], nearest_N[i] = best, second, nearest
    return left[:count]


@compiled()
def _history(i, features_ND, centres_MD, picks_B, folded, gap, error, nearest):  # type: ignore[no-untyped-def]
    """Exact squared distance of candidate i to the first `folded` centres; by the nearest alone where certain."""
    labelled = centres_MD.shape[0]
    low = np.inf
    if folded > 0:
        c_D = centres_MD[nearest] if nearest < labelled else features_ND[picks_B[nearest - labelled]]
        low = squared_distance(features_ND[i], c_D)
    if gap > 2 * error or low == 0:
        return low
    for c in range(folded):
        c_D = centres_MD[c] if c < labelled else features_ND[picks_B[c - labelled]]
        value = squared_distance(features_ND[i], c_D)
        low = value if value < low else low
    return low


@compiled()
def pick_centres(  # type: ignore[no-untyped-def]
    features_ND, centres_MD, picks_B, picked, stop, pool_P, threshold, patience,
    low_N, high_N, seen_N, folded_N, best_N, second_N, nearest_N, error_N,
):  # fmt: skip
    """Lazy greedy among the pool while its best is certain to be the best of all; returns the number picked so far.

    Candidate i's squared distance to its nearest centre, over the first seen_N[i] centres, lies in [low_N[i],
    high_N[i]] (exact where they are equal). It only falls as centres are added: high_N[i] is an upper bound
    for ever. Outside the pool every high_N is below `threshold`. Stops at a candidate that is more than
    `patience` centres behind.
    """
    labelled = centres_MD.shape[0]
    heap = [(-high_N[i], i) for i in pool_P]
    heapq.heapify(heap)
    while picked < stop and len(heap) > 0:
        negative, i = heap[0]
        if -negative < threshold:
            break
        now = labelled + picked
        # At distance 0 nothing can fall any more.
        if seen_N[i] < now and high_N[i] > 0:
            if low_N[i] < high_N[i] and now - seen_N[i] > patience:
                break
            for c in range(seen_N[i], now):
                c_D = centres_MD[c] if c < labelled else features_ND[picks_B[c - labelled]]
                value = squared_distance(features_ND[i], c_D)
                high_N[i] = min(high_N[i], value)
            low_N[i] = min(low_N[i], high_N[i])
            seen_N[i] = now
            heapq.heapreplace(heap, (-high_N[i], i))
            continue
        if low_N[i] < high_N[i]:
            rival = threshold
            for child in range(1, min(3, len(heap))):
                rival = max(rival, -heap[child][0])
            if low_N[i] <= rival:
                gap = np.float64(second_N[i]) - np.float64(best_N[i])
                exact = _history(i, features_ND, centres_MD, picks_B, folded_N[i], gap, error_N[i], nearest_N[i])
                high_N[i] = min(high_N[i], exact)
                low_N[i] = high_N[i]
                heapq.heapreplace(heap, (-high_N[i], i))
                continue
        heapq.heappop(heap)
        high_N[i] = -1.0
        low_N[i] = -1.0
        picks_B[picked] = i
        picked += 1
    return picked


@compiled()
def nearer_embeddings(  # type: ignore[no-untyped-def]
    probabilities_NK, features_ND, errors_K, labels_N, norms_N, lengths_N, products_N, slack, centre, weights_N
):
    """Lower each weight to the squared distance to `centre`, in float64, where it can be lower at all.

    products_N are the inner products of the error vectors in float32, wrong by at most `slack`. By
    Cauchy-Schwarz the squared distance is at least |g_i|^2 + |g_c|^2 - 2 |a_i.a_c| |h_i||h_c|: most
    candidates need no product of features.
    """
    for i in range(weights_N.size):
        together = norms_N[i] + norms_N[centre]
        reach = 2 * (abs(products_N[i]) + slack) * lengths_N[i] * lengths_N[centre]
        if together - reach >= weights_N[i]:
            continue
        y = labels_N[i]
        p_K = probabilities_NK[i]
        # Around the label: p_y - 1 is small where the prediction is sure, and must not be a difference of
        # larger sums.
        at_label = (np.float64(p_K[y]) - 1.0) * errors_K[y]
        errors = dot(p_K[:y], errors_K[:y]) + dot(p_K[y + 1 :], errors_K[y + 1 :]) + at_label
        value = together - 2 * errors * dot(features_ND[i], features_ND[centre])
        # Equal embeddings are at distance 0, not at the rounding of these three numbers.
        value = 0.0 if value < 1e-12 * together else value
        weights_N[i] = min(weights_N[i], value)


@compiled()
def settle_edges(points_RD, features_ND, doubtful, limit, inside):  # type: ignore[no-untyped-def]
    """Decide in float64 whether the doubtful pairs (flat positions in an R x N table) are nearer than the limit."""
    count = features_ND.shape[0]
    for place in doubtful:
        inside[place] = squared_distance(points_RD[place // count], features_ND[place % count]) < limit


@compiled()
def cover(starts, edges, covered_N, bounds_N, taken_N, picks_B, picked, stop):  # type: ignore[no-untyped-def]
    """Pick by most uncovered neighbours, lowest position first among equals; bounds_N are upper bounds throughout."""
    heap = [(-bounds_N[i], i) for i in range(bounds_N.size) if not taken_N[i]]
    heapq.heapify(heap)
    while picked < stop:
        negative, i = heap[0]
        fresh = 0
        for e in range(starts[i], starts[i + 1]):
            fresh += not covered_N[edges[e]]
        bounds_N[i] = fresh
        if fresh < -negative:
            heapq.heapreplace(heap, (-fresh, i))
            continue
        heapq.heappop(heap)
        taken_N[i] = True
        for e in range(starts[i], starts[i + 1]):
            covered_N[edges[e]] = True
        picks_B[picked] = i
        picked += 1
