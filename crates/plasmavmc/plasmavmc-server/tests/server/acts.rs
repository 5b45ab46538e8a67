//! Pause, resume and reset through the interface.

use hearth_types::{ErrorKind, Name};
use plasmavmc_client::types::{Vm, VmCreate, VmState, VmStop};
use plasmavmc_client::{ClientError, PlasmaClient};

use crate::agent::{SMALL, SimAgent, Size};
use crate::harness::{Cluster, name, until};
use crate::lifecycle::settled;

async fn running(client: &PlasmaClient, project: &Name) -> Vm {
    let request = VmCreate::new("web", "tiny");
    until("the VM is placed", async || {
        client.create_vm(project, &request, None).await.ok()
    })
    .await;
    settled(client, project, "web").await
}

fn refused(outcome: Result<Vm, ClientError>) -> String {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::FailedPrecondition), "{error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_paused_resumed_and_reset() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let web = name("web");
    running(&client, &project).await;
    for generation in [2, 2] {
        let asked = client.pause_vm(&project, &web).await.unwrap();
        assert_eq!((asked.desired_paused, asked.generation), (true, generation));
        let paused = settled(&client, &project, "web").await;
        assert_eq!((paused.state, paused.paused), (VmState::Running, true));
    }
    assert!(agent.guests()[0].paused);
    client.reset_vm(&project, &web).await.unwrap();
    let reset = settled(&client, &project, "web").await;
    assert_eq!((reset.paused, agent.guests()[0].resets), (true, 1));
    client.resume_vm(&project, &web).await.unwrap();
    let runs = settled(&client, &project, "web").await;
    assert_eq!((runs.paused, runs.generation), (false, 4));
    assert_eq!(client.resume_vm(&project, &web).await.unwrap().generation, 4);
    assert!(!agent.guests()[0].paused);
    // To start a paused guest is to let it go on; a stop ends the pause.
    client.pause_vm(&project, &web).await.unwrap();
    assert!(settled(&client, &project, "web").await.paused);
    client.start_vm(&project, &web).await.unwrap();
    assert!(!settled(&client, &project, "web").await.paused);
    client.pause_vm(&project, &web).await.unwrap();
    client.stop_vm(&project, &web, &VmStop::default()).await.unwrap();
    let stopped = settled(&client, &project, "web").await;
    assert_eq!(
        (stopped.state, stopped.paused, stopped.desired_paused),
        (VmState::Stopped, false, false)
    );
    for outcome in [
        client.pause_vm(&project, &web).await,
        client.resume_vm(&project, &web).await,
        client.reset_vm(&project, &web).await,
    ] {
        assert!(refused(outcome).contains("does not run"));
    }
    assert_eq!((agent.guests()[0].resets, agent.guests()[0].starts), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_agent_resets_and_cannot_pause() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let old = Size {
        features: &[],
        ..SMALL
    };
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], old).await;
    let web = name("web");
    running(&client, &project).await;
    let text = refused(client.pause_vm(&project, &web).await);
    assert!(text.contains("too old"), "{text}");
    client.reset_vm(&project, &web).await.unwrap();
    assert_eq!(agent.guests()[0].resets, 1);
    assert!(agent.memory.lock().unwrap().heard.contains(&"action"));
}
