//! One Chainfire member as a process, for this crate's tests and for profiling: `member CONFIG.toml`. The product runs
//! the same code through `hearthd chainfire`.

use std::{error::Error, path::Path, time::Duration};

use chainfire_server::{Config, run};
use hearth_service::{config, tasks::Tasks, telemetry};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: member CONFIG.toml")?;
    let config: Config = config::load(Path::new(&path))?;
    telemetry::init(&config.service);
    let grace = Duration::from_secs(config.service.shutdown_grace_s);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = Tasks::new();
        run(config, tasks.clone()).await?;
        Ok(tasks.run_until_signal(grace).await?)
    })
}
