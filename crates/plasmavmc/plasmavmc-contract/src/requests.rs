//! Which requests there are, and the checks before one reaches the machine.

use std::sync::{Mutex, PoisonError};

use hyper::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::machine::{Machine, State};
use crate::wire::{
    Action, ActionType, Answer, BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, MmdsConfig,
    NetworkInterface, Vm,
};

/// A change of the machine whose values are read and checked for form.
type Change = Box<dyn FnOnce(&mut Machine) -> Result<(), String>>;

const PRE_BOOT: &str = "The requested operation is not supported before starting the microVM.";
const POST_BOOT: &str = "The requested operation is not supported after starting the microVM.";

/// Answers one request.
pub(crate) fn answer(machine: &Mutex<Machine>, method: &Method, path: &str, body: &[u8]) -> Answer {
    let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
    machine.log(&format!(
        "The API server received a {method} request on \"{path}\"."
    ));
    let result = match *method {
        Method::GET => get(&machine, path, body),
        Method::PUT if body.is_empty() => Err("Empty PUT request.".to_owned()),
        Method::PUT => put(&mut machine, path, body),
        Method::PATCH if body.is_empty() => Err("Empty PATCH request.".to_owned()),
        Method::PATCH => patch(&mut machine, path, body),
        _ => Err(no_such(method, path)),
    };
    let answer = result.unwrap_or_else(Answer::fault);
    machine.log(&format!(
        "The request was answered with {}. {}",
        answer.status, answer.body
    ));
    answer
}

fn no_such(method: &Method, path: &str) -> String {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    format!("Invalid request method and/or path: {method} {first}.")
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body)
        .map_err(|e| format!("An error occurred when deserializing the json body of a request: {e}."))
}

fn get(machine: &Machine, path: &str, body: &[u8]) -> Result<Answer, String> {
    if !body.is_empty() {
        return Err("GET request cannot have a body.".to_owned());
    }
    match path {
        "/" => Ok(Answer::data(&json!({
            "id": machine.id, "state": machine.state.word(), "vmm_version": "0.0.0-imitation",
            "app_name": "Firecracker",
        }))),
        "/version" => Ok(Answer::data(&json!({"firecracker_version": "0.0.0-imitation"}))),
        "/machine-config" => Ok(Answer::data(&json!({
            "vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib, "smt": false,
            "track_dirty_pages": false, "huge_pages": "None",
        }))),
        _ => Err(no_such(&Method::GET, path)),
    }
}

fn put(machine: &mut Machine, path: &str, body: &[u8]) -> Result<Answer, String> {
    let (resource, id) = match path.trim_start_matches('/').split_once('/') {
        Some((resource, id)) => (resource, Some(id)),
        None => (path.trim_start_matches('/'), None),
    };
    // The body is read before the machine's state is looked at, as in the real one.
    let set: Change = match (resource, id) {
        ("actions", None) => return act(machine, read::<Action>(body)?.action_type),
        ("machine-config", None) => with(read::<MachineConfig>(body)?, Machine::set_size),
        ("boot-source", None) => with(read::<BootSource>(body)?, Machine::set_boot),
        ("logger", None) => with(read::<Logger>(body)?, Machine::set_logger),
        ("metrics", None) => with(read::<Metrics>(body)?, Machine::set_metrics),
        ("entropy", None) => with(read::<Entropy>(body)?, |_, _| Ok(())),
        ("drives", id) => {
            let (id, drive) = (checked_id(id)?, read::<Drive>(body)?);
            if id != drive.drive_id {
                return Err("The id from the path does not match the id from the body!".to_owned());
            }
            with(drive, Machine::set_drive)
        }
        ("network-interfaces", id) => {
            let (id, nic) = (checked_id(id)?, read::<NetworkInterface>(body)?);
            if id != nic.iface_id {
                return Err(format!(
                    "The id from the path [{id}] does not match the id from the body [{}]!",
                    nic.iface_id
                ));
            }
            with(nic, Machine::set_nic)
        }
        ("mmds", Some("config")) => with(read::<MmdsConfig>(body)?, Machine::set_mmds),
        ("mmds", None) => {
            let contents = read::<Value>(body)?;
            if !contents.is_object() {
                return Err("The MMDS data store must be a JSON object.".to_owned());
            }
            return Ok(Answer::done()); // allowed at any time
        }
        _ => return Err(no_such(&Method::PUT, path)),
    };
    if machine.state != State::NotStarted {
        return Err(POST_BOOT.to_owned());
    }
    set(machine)?;
    Ok(Answer::done())
}

fn with<T: 'static>(value: T, set: impl FnOnce(&mut Machine, T) -> Result<(), String> + 'static) -> Change {
    Box::new(move |machine| set(machine, value))
}

fn act(machine: &mut Machine, action: ActionType) -> Result<Answer, String> {
    match (action, machine.state == State::NotStarted) {
        (ActionType::InstanceStart, true) => machine.boot()?,
        (ActionType::InstanceStart, false) => return Err(POST_BOOT.to_owned()),
        (_, true) => return Err(PRE_BOOT.to_owned()),
        (ActionType::FlushMetrics, false) => machine.flush_metrics()?,
        (ActionType::SendCtrlAltDel, false) => machine.ctrl_alt_del(),
    }
    Ok(Answer::done())
}

fn patch(machine: &mut Machine, path: &str, body: &[u8]) -> Result<Answer, String> {
    if path != "/vm" {
        return Err(no_such(&Method::PATCH, path));
    }
    let wanted = read::<Vm>(body)?.state;
    if machine.state == State::NotStarted {
        return Err(PRE_BOOT.to_owned());
    }
    machine.set_running(wanted);
    Ok(Answer::done())
}

fn checked_id(id: Option<&str>) -> Result<&str, String> {
    let id = id.filter(|id| !id.is_empty()).ok_or("The ID cannot be empty.")?;
    if id.chars().all(|c| c == '_' || c.is_alphanumeric()) {
        Ok(id)
    } else {
        Err("API Resource IDs can only contain alphanumeric characters and underscores.".to_owned())
    }
}
