//! The figures as a table, with what limits their meaning.

use super::{BenchArgs, Figure, Figures, Product};

fn median(figures: &[Figure], of: impl Fn(&Figure) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One product's part of a row, and its rate.
fn side(figures: &[Figure]) -> (f64, String) {
    let rate = median(figures, |figure| figure.per_second);
    let text = format!(
        "{rate:.0} | {:.2} / {:.2} | {:.0} | {:.0}",
        median(figures, |figure| f64::from(figure.p50_us)) / 1000.0,
        median(figures, |figure| f64::from(figure.p99_us)) / 1000.0,
        median(figures, |figure| figure.cpu_us),
        median(figures, |figure| figure.memory_mib),
    );
    (rate, text)
}

/// Prints everything that was measured of both.
pub(super) fn print(figures: &Figures, args: &BenchArgs, etcd: &str) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let build = if cfg!(debug_assertions) {
        "without optimisation: it takes the servers' cores, use `cargo xtask-fast`"
    } else {
        "with optimisation"
    };
    println!(
        "median of {} interleaved rounds of {} s; {cores} cores shared by client and servers; the client was built \
         {build}; peer: {etcd}",
        args.rounds, args.seconds
    );
    println!(
        "operations per second | p50 / p99 ms | servers' processor microseconds an operation | servers' memory MiB"
    );
    println!();
    println!(
        "| members | load | etcd op/s | ms | cpu us | MiB | chainfire op/s | ms | cpu us | MiB | ratio | load average |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut busiest: f64 = 0.0;
    for ((cell, product), theirs) in figures {
        if *product != Product::Etcd {
            continue;
        }
        let Some(ours) = figures.get(&(*cell, Product::Chainfire)) else {
            continue;
        };
        let ((their_rate, their_text), (our_rate, our_text)) = (side(theirs), side(ours));
        let loads = || theirs.iter().chain(ours).map(|figure| figure.load_average);
        let (least, most) = (loads().fold(f64::INFINITY, f64::min), loads().fold(0.0, f64::max));
        busiest = busiest.max(least);
        println!(
            "| {} | {:?}, {} | {their_text} | {our_text} | {:.2} | {least:.1} to {most:.1} |",
            cell.members,
            cell.load,
            cell.clients,
            our_rate / their_rate
        );
    }
    // The load itself raises the average, so only what is far above it counts as foreign.
    if busiest > 3.0 * cores as f64 {
        println!(
            "The machine was busy with other work (load average at least {busiest:.1}): the ratios mean little."
        );
    }
}
