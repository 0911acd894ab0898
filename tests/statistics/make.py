#!/usr/bin/env python3
"""Writes the samples beside this file and what SciPy, statsmodels, scikit-learn and numpy make of them.

python3 -m venv v && v/bin/pip install numpy scipy statsmodels scikit-learn && v/bin/python tests/statistics/make.py
"""
import json
from pathlib import Path

import numpy as np
from scipy import stats
import statsmodels.api as sm
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.multitest import multipletests

HERE = Path(__file__).parent
DRAWS = 1_000_000


def write(name, value):
    (HERE / name).write_text(json.dumps(value, separators=(",", ":")).replace("],[", "],\n[") + "\n")


def numbers(x, digits=3):
    return np.round(x, digits).tolist()


def crossed(sums, statistic, rng):
    """Percentile interval and standard deviation of the mean over seeds of statistic(sums over subjects), with
    subjects and seeds drawn with replacement. sums: [subjects, seeds, K]."""
    n, s, k = sums.shape
    drawn = []
    for _ in range(DRAWS // 10_000):
        w = rng.multinomial(n, np.full(n, 1 / n), 10_000).astype(float)
        m = rng.multinomial(s, np.full(s, 1 / s), 10_000) / s
        total = (w @ sums.reshape(n, s * k)).reshape(-1, s, k)
        drawn.append((statistic(np.moveaxis(total, 2, 0)) * m).sum(1))
    drawn = np.concatenate(drawn)
    value = statistic(np.moveaxis(sums.sum(0), 1, 0)).mean()
    return {"value": value, "low": np.quantile(drawn, 0.025), "high": np.quantile(drawn, 0.975), "sd": drawn.std()}


def arms():
    """Two arms, 40 people (ten of them with two scans), 3 seeds, 5 folds."""
    rng = np.random.default_rng(1)
    scans = [(i, j) for i in range(40) for j in range(2 if i % 4 == 0 else 1)]
    ages = {scan: round(float(rng.uniform(20, 80)), 1) for scan in scans}
    person, better = rng.normal(0, 6, 40), rng.normal(0.6, 1, 40)
    rows = []
    for seed in range(3):
        run = rng.normal(0, 0.7, (2, 5))
        for i, j in scans:
            e = 0.8 * person[i] + rng.normal(0, 3, 2) - 0.2 * (ages[i, j] - 50)
            a = e[0] - np.sign(e[0]) * (1 + better[i]) + run[0, i % 5]
            rows.append([i, j, ages[i, j], *numbers(np.array([ages[i, j] + a, ages[i, j] + e[1] + run[1, i % 5]]), 2), seed, i % 5])
    return rows


def of_arms(rows):
    r = np.array(rows, float)
    subject, age, pa, pb, seed, fold = r[:, 0].astype(int), r[:, 2], r[:, 3], r[:, 4], r[:, 5].astype(int), r[:, 6]
    n, s = subject.max() + 1, seed.max() + 1
    rng = np.random.default_rng(2)

    def cells(*columns):
        sums = np.zeros((n, s, len(columns)))
        for k, column in enumerate(columns):
            np.add.at(sums[:, :, k], (subject, seed), column)
        return sums

    one, x, y = np.ones_like(age), age - 50, pa - 50
    e = y - x
    sums = cells(one, abs(e), e * e, x, x * x, y, y * y, x * y)
    summary = {
        "mae": crossed(sums, lambda t: t[1] / t[0], rng),
        "rmse": crossed(sums, lambda t: np.sqrt(t[2] / t[0]), rng),
        "r2": crossed(sums, lambda t: 1 - t[2] / (t[4] - t[3] ** 2 / t[0]), rng),
        "pearson_r": crossed(
            sums,
            lambda t: (t[7] - t[3] * t[5] / t[0]) / np.sqrt((t[4] - t[3] ** 2 / t[0]) * (t[6] - t[5] ** 2 / t[0])),
            rng,
        ),
    }
    by_seed = [(seed == k) for k in range(s)]
    exact = {
        "mae": np.mean([abs(e[k]).mean() for k in by_seed]),
        "rmse": np.mean([np.sqrt((e[k] ** 2).mean()) for k in by_seed]),
        "r2": np.mean([r2_score(age[k], pa[k]) for k in by_seed]),
        "pearson_r": np.mean([stats.pearsonr(age[k], pa[k])[0] for k in by_seed]),
    }
    for name, value in exact.items():
        assert np.isclose(summary[name]["value"], value)
    summary["mae_sd_over_seeds"] = np.std([abs(e[k]).mean() for k in by_seed], ddof=1)
    summary["bias"] = np.mean([e[k].mean() for k in by_seed])

    d = abs(pa - age) - abs(pb - age)
    sums = cells(d, one)
    mean = sums[:, :, :1] / sums[:, :, 1:]
    difference = crossed(np.concatenate([mean, np.ones_like(mean)], 2), lambda t: t[0] / t[1], rng)
    d_subject = mean.mean((1, 2))
    of_fold = np.array([[mean[np.arange(n) % 5 == f, k].mean() for f in range(5)] for k in range(s)])
    exact = stats.permutation_test((d_subject[:13],), np.mean, permutation_type="samples", n_resamples=np.inf)
    flips = rng.choice([-1.0, 1.0], (DRAWS, n)) @ d_subject / n
    # Clustered by subject and by run (Cameron, Gelbach and Miller 2011), each with its G / (G - 1).
    share = (mean[:, :, 0] - mean.mean()) / mean.size
    fold_share = np.array([share[np.arange(n) % 5 == f].sum(0) for f in range(5)])
    by = lambda u: (u**2).sum() * u.size / (u.size - 1)
    v = by(share.sum(1)) + by(fold_share) - by(share)
    v = max(v, by(share.sum(1)), by(fold_share))
    return {
        "summary": summary,
        "difference": difference,
        "p_subjects": (1 + (abs(flips) >= abs(d_subject.mean()) - 1e-12).sum()) / (1 + DRAWS),
        "first_13": d_subject[:13].tolist(),
        "first_13_p": exact.pvalue,
        "runs": of_fold.ravel().tolist(),
        "p_runs": stats.ttest_1samp(of_fold.ravel(), 0).pvalue,
        "p_seeds": stats.ttest_1samp(of_fold.mean(1), 0).pvalue,
        "p_crossed": 2 * stats.t.sf(abs(mean.mean()) / np.sqrt(v), 14),
        "students": [[x, stats.ttest_1samp(x, 0).pvalue] for x in ([1.0, 1.01], [3.0, 3.1, 2.9, 3.05], [0.5, -0.4, 0.1])],
        "holm": [[p, multipletests(p, method="holm")[1].tolist()] for p in ([0.01, 0.04, 0.03, 0.005], [0.6, 0.5, 0.02])],
    }


def over_subjects(subject, statistic, rng, draws=20_000):
    """statistic(rows) of all rows, and of those of subjects drawn with replacement."""
    rows = [np.flatnonzero(subject == k) for k in np.unique(subject)]
    drawn = [
        statistic(np.concatenate([rows[k] for k in rng.integers(0, len(rows), len(rows))])) for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": statistic(np.arange(len(subject))), "low": low, "high": high, "sd": np.std(drawn)}


def of_gaps(rows):
    """Gaps of arm a by scan, and how they go with a quality made up here."""
    r = np.array(rows, float)
    scan = (r[:, 0] * 10 + r[:, 1]).astype(int)
    age, prediction, seed, fold = r[:, 2], r[:, 3], r[:, 5], r[:, 6]
    gaps = {"none": prediction - age, "cole": np.zeros_like(age), "beheshti": np.zeros_like(age)}
    for s in np.unique(seed):
        for f in np.unique(fold):
            own, others = (seed == s) & (fold == f), (seed == s) & (fold != f)
            a, b = np.polyfit(age[others], prediction[others], 1)
            gaps["cole"][own] = (prediction[own] - b) / a - age[own]
            a, b = np.polyfit(age[others], gaps["none"][others], 1)
            gaps["beheshti"][own] = gaps["none"][own] - (a * age[own] + b)
    scans = np.unique(scan)
    gaps = {k: np.array([v[scan == i].mean() for i in scans]) for k, v in gaps.items()}
    age = np.array([age[scan == i][0] for i in scans])
    subject = scans // 10
    rng = np.random.default_rng(3)
    quality = np.round(3 - 0.02 * age - 0.05 * gaps["none"] + rng.normal(0, 0.5, len(scans)), 2)
    z, gap = (quality - quality.mean()) / quality.std(ddof=1), gaps["beheshti"]

    def slope(i):
        return sm.OLS(gap[i], sm.add_constant(np.column_stack([z[i], age[i]]))).fit().params[1]

    def partial(i):
        a, b, c = (stats.rankdata(v[i]) for v in (gap, quality, age))
        left = lambda v: v - np.polyval(np.polyfit(c, v, 1), c)
        return stats.pearsonr(left(a), left(b))[0]

    return {
        "gaps": {k: v.tolist() for k, v in gaps.items()},
        "quality": quality.tolist(),
        "slope": over_subjects(subject, slope, rng),
        "spearman": over_subjects(subject, partial, rng),
    }


SHARES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0]


def probes():
    """Features of 36 people, twelve with two scans: 60 of them (more than scans), and the first 6 alone."""
    rng = np.random.default_rng(4)
    subject = np.concatenate([np.arange(36), np.arange(12)])
    n, d, fold = len(subject), 60, subject % 4
    person = rng.normal(size=(36, d))
    x = np.round(person[subject] + 0.5 * rng.normal(size=(n, d)), 2).astype(np.float32)
    age = np.round(50 + 6 * person[subject, :3].sum(1) + rng.normal(0, 4, n), 1)
    label = np.argmax(person[subject][:, 3:6] + rng.normal(0, 1.2, (36, 3))[subject], 1)
    expected = {}
    for name, d in [("wide", 60), ("narrow", 6)]:
        f = x[:, :d].astype(float)
        train, test = fold != 0, fold == 0
        scaled = StandardScaler().fit(f[train])
        ridge = RidgeCV(np.array(SHARES) * d).fit(scaled.transform(f[train]), age[train])
        told, classes = np.zeros(n), np.zeros(n, int)
        permuted = np.zeros((300, n), int)
        labels = [rng.permutation(label[:36])[subject] for _ in permuted]
        for k in range(4):
            train, test_k = fold != k, fold == k
            s = StandardScaler().fit(f[train])
            a, b = s.transform(f[train]), s.transform(f[test_k])
            told[test_k] = RidgeCV(np.array(SHARES) * d).fit(a, age[train]).predict(b)
            classes[test_k] = RidgeClassifierCV(np.array(SHARES) * d).fit(a, label[train]).predict(b)
            for p, l in zip(permuted, labels):
                p[test_k] = RidgeClassifierCV(np.array(SHARES) * d).fit(a, l[train]).predict(b)
        accuracy = balanced_accuracy_score(label, classes)
        chance = np.array([balanced_accuracy_score(l, p) for l, p in zip(labels, permuted)])
        expected[name] = {
            "width": d,
            "test": ridge.predict(scaled.transform(f[test])).tolist(),
            "balanced_accuracy": accuracy,
            "chance": chance.mean(),
            "p": (1 + (chance >= accuracy - 1e-12).sum()) / (1 + len(chance)),
            "r2": over_subjects(subject, lambda i: r2_score(age[i], told[i]), rng),
            "spearman": over_subjects(subject, lambda i: stats.spearmanr(age[i], told[i])[0], rng),
        }
    return {
        "subject": subject.tolist(),
        "fold": fold.tolist(),
        "age": age.tolist(),
        "label": label.tolist(),
        "features": [[round(float(v), 2) for v in row] for row in x],
        "expected": expected,
    }


def main():
    rows = arms()
    write("arms.json", {"rows": rows, "expected": of_arms(rows), "gap": of_gaps(rows)})
    write("probe.json", probes())


main()
