"""Tables and plots from the figures of all runs: mean and range over the seeds, and the values of every seed."""

import csv
import json
import math
import statistics

SEEDS = config["seeds"]
OVER = f"over {len(SEEDS)} seeds: mean [least, greatest]" if len(SEEDS) > 1 else "of one seed"


localrules:
    all,
    encoders,
    ablation,
    sensitivity,


def evaluations(runs):
    """The metrics files of these runs."""
    return expand(METRICS, run=dict.fromkeys(runs), seed=SEEDS)


def number(value):
    """A figure from JSON as a float; undefined ones (null) are NaN."""
    return math.nan if value is None else float(value)


def estimates(row, path):
    """Metric → (value, low, high) for one row of a metrics.json."""
    missing = [metric for metric in config["metrics"] if metric not in row]
    if missing:
        raise WorkflowError(
            f"{path} has no metric {missing[0]!r}; `metrics` in the configuration may contain {', '.join(row)}"
        )
    return {metric: [number(row[metric][bound]) for bound in ("value", "low", "high")] for metric in config["metrics"]}


def figures(runs):
    """Label → metric → (value, low, high) per seed, for the models."""
    found = {label: {metric: [] for metric in config["metrics"]} for label in runs}
    for label, run in runs.items():
        for seed in SEEDS:
            path = METRICS.format(run=run, seed=seed)
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            for metric, estimate in estimates(facts["rows"][facts["model"]], path).items():
                found[label][metric].append(estimate)
    return found


def baselines(runs):
    """The same for baselines without a model, from the first evaluation, since all evaluations share them."""
    path = evaluations(runs.values())[0]
    facts = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = {label: row for label, row in facts["rows"].items() if label != facts["model"]}
    return {label: {m: [e] for m, e in estimates(row, path).items()} for label, row in rows.items()}


def differences(rows):
    """Difference of each row to the first one, per seed."""
    (_, first), *others = rows.items()
    return {label: {m: [[a[0] - b[0]] for a, b in zip(row[m], first[m])] for m in row} for label, row in others}


def summary(seeds):
    """Mean, smallest and largest value; all NaN if the value of one seed is undefined."""
    values = [estimate[0] for estimate in seeds]
    return [math.nan] * 3 if any(map(math.isnan, values)) else [statistics.fmean(values), min(values), max(values)]


def cell(seeds):
    """Mean [least, greatest], as text."""
    mean, least, greatest = summary(seeds)
    if math.isnan(mean):
        return "–"
    return f"{mean:z.3f}" if len(seeds) == 1 else f"{mean:z.3f} [{least:z.3f}, {greatest:z.3f}]"


def markdown(rows):
    """A table with one line per row and one column per metric."""
    lines = ["| | " + " | ".join(config["metrics"]) + " |", "|---" * (len(config["metrics"]) + 1) + "|"]
    lines += [
        f"| {label} | " + " | ".join(cell(row[m]) for m in config["metrics"]) + " |" for label, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def write_csv(rows, path):
    """One line per row and metric: mean, least, greatest, and the value of every seed."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["row", "metric", "mean", "least", "greatest", *(f"seed {seed}" for seed in SEEDS)])
        for label, row in rows.items():
            for metric, seeds in row.items():
                table.writerow([label, metric, *summary(seeds), *(estimate[0] for estimate in seeds)])


def draw(rows, path, *, is_sweep=False):
    """A panel per metric: every seed as a dot with its 95 % interval, and the mean as a diamond."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(config["metrics"]))
    lines = math.ceil(len(config["metrics"]) / columns)
    size = (2 + 3 * columns, lines * (1 + 0.45 * len(rows)))
    figure, axes = pyplot.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(config["metrics"]) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes.flat, config["metrics"]):
        means = [summary(row[metric])[0] for row in rows.values()]
        for place, row in enumerate(rows.values()):
            for i, (value, low, high) in enumerate(row[metric]):
                y = place + 0.6 * ((i + 0.5) / len(SEEDS) - 0.5)
                axis.plot([low, high], [y, y], color="0.7", linewidth=1)
                axis.plot(value, y, "o", color="0.25", markersize=3, zorder=3)
        axis.plot(means, range(len(means)), "D-" if is_sweep else "D", color="#7a3b10", markersize=6, linewidth=1)
        if not is_sweep:
            axis.axvline(means[0], color="#7a3b10", linewidth=0.7, linestyle=":")
        axis.set_title(metric, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="0.92")
    axes[0, 0].set_yticks(range(len(rows)), rows)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("dot: one seed with its 95 % interval; diamond: mean", fontsize=8)
    figure.savefig(path, dpi=150)


rule encoders:
    input:
        expand(DISCRIMINATION, seed=SEEDS),
    output:
        csv=RESULTS + "/encoders/table.csv",
        md=RESULTS + "/encoders/table.md",
    params:
        seeds=SEEDS,
        bar=config["encoders"]["discrimination"],
    run:
        found = {seed: json.loads(Path(path).read_text(encoding="utf-8")) for seed, path in zip(SEEDS, input)}
        accuracy = [facts["accuracy"]["value"] for facts in found.values()]
        passed, mean = sum(value > params.bar for value in accuracy), statistics.fmean(accuracy)
        verdict = "holds" if mean > params.bar else "does not hold"
        lines = [
            f"discrimination {100 * mean:.1f} % (> {100 * params.bar:g} %: {verdict}; in {passed} of {len(SEEDS)} seeds)\n",
            "Balanced accuracy at the best threshold of the cosine similarity, on the split "
            f"{found[SEEDS[0]]['split']!r}; 95 % intervals. The distributions are in similarity-seed*.png.\n",
            "| seed | held-out pairs | accuracy | threshold | ROC-AUC |",
            "|---|---|---|---|---|",
        ]
        header = ["seed", "pairs", "accuracy", "low", "high", "threshold", "auc", "auc low", "auc high"]
        with open(output.csv, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for seed, facts in found.items():
                bounds = [
                    [facts[name][bound] for bound in ("value", "low", "high")] for name in ("accuracy", "auc")
                ]
                table.writerow([seed, facts["pairs"], *bounds[0], facts["threshold"], *bounds[1]])
                shown = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in bounds]
                lines.append(f"| {seed} | {facts['pairs']} | {shown[0]} | {facts['threshold']:.2f} | {shown[1]} |")
        lines.append("| paper | | 0.924 | 0.44 | |")
        Path(output.md).write_text("\n".join(lines) + "\n", encoding="utf-8")


rule ablation:
    input:
        evaluations(ABLATION.values()),
    output:
        csv=RESULTS + "/ablation/table.csv",
        md=RESULTS + "/ablation/table.md",
        plot=RESULTS + "/ablation/plot.png",
    params:
        rows=ABLATION,
        seeds=SEEDS,
        metrics=config["metrics"],
    run:
        rows = figures(ABLATION)
        write_csv(rows | baselines(ABLATION), output.csv)
        draw(rows, output.plot)
        first = next(iter(rows))
        Path(output.md).write_text(
            f"Ablation {OVER}. The last rows are baselines without a model.\n\n{markdown(rows | baselines(ABLATION))}\n"
            f"Differences to `{first}`, per seed:\n\n{markdown(differences(rows))}",
            encoding="utf-8",
        )


rule sensitivity:
    input:
        evaluations([run for sweep in SWEEPS.values() for run in sweep.values()]),
    output:
        csv=RESULTS + "/sensitivity/table.csv",
        md=RESULTS + "/sensitivity/table.md",
        plots=expand(RESULTS + "/sensitivity/{sweep}.png", sweep=SWEEPS),
    params:
        rows=SWEEPS,
        seeds=SEEDS,
        metrics=config["metrics"],
    run:
        sweeps = {sweep: figures(runs) for sweep, runs in SWEEPS.items()}
        write_csv({label: row for rows in sweeps.values() for label, row in rows.items()}, output.csv)
        text = f"Sensitivity {OVER}.\n"
        for (sweep, rows), plot in zip(sweeps.items(), output.plots):
            draw(rows, plot, is_sweep=True)
            text += f"\n{sweep}\n\n{markdown(rows)}"
        text += f"\nBaselines without a model\n\n{markdown(baselines(SWEEPS[next(iter(SWEEPS))]))}"
        Path(output.md).write_text(text, encoding="utf-8")
