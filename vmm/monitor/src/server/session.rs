//! What clients see: the description, the state, and which request is allowed when.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use fief_api::{
    ActionType, BalloonStats, BalloonStatsUpdate, BalloonUpdate, DevicePassthrough, Drive,
    Endpoint, FIRECRACKER_VERSION, InstanceActionInfo, InstanceInfo, InstanceState, PartialDrive,
    Version, Vm, VmState,
};
use fief_devices::virtio::balloon::BalloonReport;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::control::{BalloonCommand, Command, Post};
use super::draft::Draft;
use super::error::RequestError;
use super::limits::limits;
use crate::logger;
use crate::machine::files::Files;
use crate::machine::{AllPlugged, Plugged};

/// How long a client waits for a guest that is asked for statistics. Other clients wait as long.
const GUEST_PATIENCE: Duration = Duration::from_millis(500);

/// The name in `GET /`.
const APP_NAME: &str = "fief-vmm";

/// One for all connections; requests are served one after another.
pub struct Session {
    id: String,
    draft: Draft,
    state: InstanceState,
    post: Post,
    files: Files,
}

/// A success: JSON (200) or nothing to say (204).
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Json(Vec<u8>),
    Done,
}

/// What a request may change, and so when it is allowed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    BeforeStart,
    AfterStart,
}

fn when(endpoint: &Endpoint) -> When {
    match endpoint {
        // Judged by its action.
        Endpoint::PutActions => When::Always,
        Endpoint::DescribeInstance
        | Endpoint::Version
        | Endpoint::GetMachineConfig
        | Endpoint::GetBalloon
        | Endpoint::GetVmConfig
        | Endpoint::PutDrive(_)
        | Endpoint::DeleteDrive(_)
        | Endpoint::GetDevice(_)
        | Endpoint::PutDevice(_)
        | Endpoint::DeleteDevice(_) => When::Always,
        Endpoint::PatchBalloon
        | Endpoint::GetBalloonStatistics
        | Endpoint::PatchBalloonStatistics
        | Endpoint::PatchVm
        | Endpoint::PatchDrive(_)
        | Endpoint::PatchNetworkInterface(_) => When::AfterStart,
        _ => When::BeforeStart,
    }
}

impl Session {
    /// `state` is `Running` where a configuration file starts the machine.
    pub fn new(id: String, draft: Draft, state: InstanceState, post: Post, files: Files) -> Self {
        Self {
            id,
            draft,
            state,
            post,
            files,
        }
    }

    /// Serves one request.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn serve(&mut self, endpoint: Endpoint, body: Bytes) -> Result<Answer, RequestError> {
        let (method, path) = endpoint.request_line();
        let request = format!("{method} {path}");
        self.check_when(when(&endpoint), &request)?;
        let body = Bodied { body, request };
        match endpoint {
            Endpoint::DescribeInstance => json(&self.describe()),
            Endpoint::Version => json(&version()),
            Endpoint::GetMachineConfig => json(self.draft.machine()),
            Endpoint::GetVmConfig => {
                let leaving = self.look_at_plugged().await?;
                json(&fief_api::FullVmConfiguration {
                    releasing: ids(leaving.drives),
                    releasing_devices: ids(leaving.devices),
                    ..self.draft.whole()
                })
            }
            Endpoint::PutMachineConfig => done(self.draft.put_machine(body.parse()?)),
            Endpoint::PatchMachineConfig => done(self.draft.patch_machine(body.parse()?)),
            Endpoint::PutBootSource => done(self.draft.put_boot(body.parse()?)),
            Endpoint::PutDrive(id) => {
                let drive: Drive = body.parse()?;
                same_id(&id, &drive.drive_id)?;
                done(self.put_drive(drive).await)
            }
            Endpoint::PatchDrive(id) => {
                let update: PartialDrive = body.parse()?;
                same_id(&id, &update.drive_id)?;
                done(self.patch_drive(update).await)
            }
            Endpoint::DeleteDrive(id) => done(self.delete_drive(id).await),
            Endpoint::GetDevice(id) => {
                self.look_at_plugged().await?;
                json(self.draft.device(&id)?)
            }
            Endpoint::PutDevice(id) => {
                let device: DevicePassthrough = body.parse()?;
                same_id(&id, &device.id)?;
                done(self.put_device(device).await)
            }
            Endpoint::DeleteDevice(id) => done(self.delete_device(id).await),
            Endpoint::PutNetworkInterface(id) => {
                let interface: fief_api::NetworkInterface = body.parse()?;
                same_id(&id, &interface.iface_id)?;
                done(self.draft.put_interface(interface))
            }
            Endpoint::PatchNetworkInterface(id) => {
                let update: fief_api::PartialNetworkInterface = body.parse()?;
                same_id(&id, &update.iface_id)?;
                let interface = self.draft.limited_interface(update)?;
                let (rx, tx) = (
                    limits(interface.rx_rate_limiter),
                    limits(interface.tx_rate_limiter),
                );
                self.ask(Command::LimitInterface { id, rx, tx }).await?;
                self.draft.remember_interface(interface);
                Ok(Answer::Done)
            }
            Endpoint::PutVsock => done(self.draft.put_vsock(body.parse()?)),
            Endpoint::PutEntropy => done(self.draft.put_entropy(body.parse()?)),
            Endpoint::GetBalloon => json(self.draft.balloon()?),
            Endpoint::PutBalloon => done(self.draft.put_balloon(body.parse()?)),
            Endpoint::PatchBalloon => self.patch_balloon(body.parse()?).await,
            Endpoint::GetBalloonStatistics => json(&self.balloon_statistics().await?),
            Endpoint::PatchBalloonStatistics => self.patch_statistics(body.parse()?).await,
            Endpoint::PutSerial => done(self.draft.put_serial(body.parse()?)),
            Endpoint::PutLogger => {
                let settings: fief_api::Logger = body.parse()?;
                logger::configure(&settings, &self.files)?;
                self.draft.remember_logger(settings);
                Ok(Answer::Done)
            }
            Endpoint::PutLifecycle => {
                self.draft.put_lifecycle(body.parse()?);
                Ok(Answer::Done)
            }
            Endpoint::PutActions => self.act(body.parse()?).await,
            Endpoint::PatchVm => self.change_state(body.parse()?).await,
        }
    }

    fn check_when(&self, when: When, request: &str) -> Result<(), RequestError> {
        let started = self.state != InstanceState::NotStarted;
        match when {
            When::BeforeStart if started => Err(RequestError::AfterStart(request.to_owned())),
            When::AfterStart if !started => Err(RequestError::BeforeStart(request.to_owned())),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> InstanceInfo {
        InstanceInfo {
            app_name: APP_NAME.to_owned(),
            id: self.id.clone(),
            state: self.state,
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    async fn act(&mut self, info: InstanceActionInfo) -> Result<Answer, RequestError> {
        let name = format!("{:?}", info.action_type);
        match info.action_type {
            ActionType::InstanceStart => {
                self.check_when(When::BeforeStart, &name)?;
                let config = Box::new(self.draft.finish()?);
                self.ask(Command::Start(config)).await?;
                self.state = InstanceState::Running;
            }
            ActionType::SendCtrlAltDel => {
                self.check_when(When::AfterStart, &name)?;
                self.ask(Command::PressPowerButton).await?;
            }
            // There are no metrics yet: nothing to flush, as in a Firecracker without a metrics file.
            ActionType::FlushMetrics => self.check_when(When::AfterStart, &name)?,
        }
        Ok(Answer::Done)
    }

    async fn change_state(&mut self, vm: Vm) -> Result<Answer, RequestError> {
        let (command, state) = match vm.state {
            VmState::Paused => (Command::Pause, InstanceState::Paused),
            VmState::Resumed => (Command::Resume, InstanceState::Running),
        };
        if self.state != state {
            self.ask(command).await?;
            self.state = state;
        }
        Ok(Answer::Done)
    }

    fn has_started(&self) -> bool {
        self.state != InstanceState::NotStarted
    }

    /// Forgets the drives and devices that the guest has let go of; gives those that it was asked to let go of.
    async fn look_at_plugged(&mut self) -> Result<AllPlugged, RequestError> {
        if !self.has_started() {
            return Ok(AllPlugged::default());
        }
        let (reply, plugged) = oneshot::channel();
        self.ask(Command::ListPlugged(reply)).await?;
        let mut plugged = plugged.await.map_err(|_| RequestError::Exiting)?;
        let is_there = |all: &[Plugged], id: &str| all.iter().any(|one| one.id == id);
        self.draft.keep_drives(|id| is_there(&plugged.drives, id));
        self.draft.keep_devices(|id| is_there(&plugged.devices, id));
        plugged.drives.retain(|drive| drive.leaving);
        plugged.devices.retain(|device| device.leaving);
        Ok(plugged)
    }

    async fn put_device(&mut self, device: DevicePassthrough) -> Result<(), RequestError> {
        if !self.has_started() {
            return self.draft.put_device(device);
        }
        self.look_at_plugged().await?;
        let config = self.draft.check_new_device(&device)?;
        self.ask(Command::AddDevice(Box::new(config.clone())))
            .await?;
        self.draft.remember_device(device, config)
    }

    async fn delete_device(&mut self, id: String) -> Result<(), RequestError> {
        if !self.has_started() {
            return self.draft.remove_device(&id);
        }
        self.look_at_plugged().await?;
        self.draft.device(&id)?;
        self.ask(Command::ReleaseDevice(id)).await
    }

    async fn put_drive(&mut self, drive: Drive) -> Result<(), RequestError> {
        if !self.has_started() {
            return self.draft.put_drive(drive);
        }
        self.look_at_plugged().await?;
        let config = self.draft.check_new_drive(&drive)?;
        self.ask(Command::AddDrive(Box::new(config.clone())))
            .await?;
        self.draft.remember_drive(drive, config)
    }

    async fn delete_drive(&mut self, id: String) -> Result<(), RequestError> {
        if !self.has_started() {
            return self.draft.remove_drive(&id);
        }
        self.look_at_plugged().await?;
        self.draft.drive(&id)?;
        self.ask(Command::ReleaseDrive(id)).await
    }

    async fn patch_drive(&mut self, update: PartialDrive) -> Result<(), RequestError> {
        self.look_at_plugged().await?;
        let limiter = self.draft.check_update(&update)?;
        let id = update.drive_id;
        if let Some(path) = update.path_on_host {
            let command = Command::ReplaceDriveFile(id.clone(), PathBuf::from(&path));
            self.ask(command).await?;
            (self.draft).change_drive(&id, |drive| drive.path_on_host = Some(path));
        }
        if limiter.is_some() {
            let command = Command::LimitDrive(id.clone(), limits(limiter));
            self.ask(command).await?;
            (self.draft).change_drive(&id, |drive| drive.rate_limiter = limiter);
        }
        Ok(())
    }

    async fn patch_balloon(&mut self, update: BalloonUpdate) -> Result<Answer, RequestError> {
        let target = self.draft.balloon_target(update.amount_mib)?;
        self.ask_balloon(BalloonCommand::SetTarget(target)).await?;
        self.draft
            .remember_balloon(|balloon| balloon.amount_mib = update.amount_mib);
        Ok(Answer::Done)
    }

    async fn patch_statistics(
        &mut self,
        update: BalloonStatsUpdate,
    ) -> Result<Answer, RequestError> {
        let seconds = update.stats_polling_interval_s;
        let interval = self.draft.balloon_interval(seconds)?;
        self.ask_balloon(BalloonCommand::SetInterval(interval))
            .await?;
        self.draft
            .remember_balloon(|balloon| balloon.stats_polling_interval_s = seconds);
        Ok(Answer::Done)
    }

    /// What the guest says, now or with its last statistics.
    async fn balloon_statistics(&self) -> Result<BalloonStats, RequestError> {
        let asks = self.draft.balloon_with_statistics()?.stats_on_demand;
        if asks && self.state == InstanceState::Running {
            let (reply, report) = oneshot::channel();
            self.ask_balloon(BalloonCommand::Refresh(reply)).await?;
            if let Ok(Ok(report)) = tokio::time::timeout(GUEST_PATIENCE, report).await {
                return Ok(statistics(&report));
            }
        }
        let (reply, report) = oneshot::channel();
        self.ask_balloon(BalloonCommand::Report(reply)).await?;
        let report = report.await.map_err(|_| RequestError::Exiting)?;
        Ok(statistics(&report))
    }

    async fn ask_balloon(&self, command: BalloonCommand) -> Result<(), RequestError> {
        self.ask(Command::Balloon(command)).await
    }

    async fn ask(&self, command: Command) -> Result<(), RequestError> {
        match self.post.ask(command).await {
            Ok(outcome) => outcome.map_err(RequestError::Machine),
            Err(_) => Err(RequestError::Exiting),
        }
    }
}

fn ids(plugged: Vec<Plugged>) -> Vec<String> {
    plugged.into_iter().map(|one| one.id).collect()
}

fn statistics(report: &BalloonReport) -> BalloonStats {
    let (target, actual) = (report.target_pages, report.actual_pages);
    // Pages of 4 KiB.
    let mib = |pages| u64::from(pages) >> 8;
    let said = report.statistics;
    BalloonStats {
        target_pages: u64::from(target),
        actual_pages: u64::from(actual),
        target_mib: mib(target),
        actual_mib: mib(actual),
        swap_in: said.swap_in,
        swap_out: said.swap_out,
        major_faults: said.major_faults,
        minor_faults: said.minor_faults,
        free_memory: said.free_memory,
        total_memory: said.total_memory,
        available_memory: said.available_memory,
        disk_caches: said.disk_caches,
        hugetlb_allocations: said.hugetlb_allocations,
        hugetlb_failures: said.hugetlb_failures,
        oom_kill: said.oom_kill,
        alloc_stall: said.alloc_stall,
        async_scan: said.async_scan,
        direct_scan: said.direct_scan,
        async_reclaim: said.async_reclaim,
        direct_reclaim: said.direct_reclaim,
    }
}

/// A body and the request it came with.
struct Bodied {
    body: Bytes,
    request: String,
}

impl Bodied {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, RequestError> {
        if self.body.is_empty() {
            return Err(RequestError::NoBody);
        }
        serde_json::from_slice(&self.body).map_err(|source| RequestError::Json {
            request: self.request.clone(),
            source,
        })
    }
}

fn version() -> Version {
    Version {
        firecracker_version: FIRECRACKER_VERSION.to_owned(),
        fief_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn same_id(path: &str, body: &str) -> Result<(), RequestError> {
    if path == body {
        return Ok(());
    }
    let shortened = |text: &str| text.chars().take(64).collect();
    Err(RequestError::IdMismatch {
        path: shortened(path),
        body: shortened(body),
    })
}

fn done(result: Result<(), RequestError>) -> Result<Answer, RequestError> {
    result.map(|()| Answer::Done)
}

fn json<T: Serialize>(value: &T) -> Result<Answer, RequestError> {
    match serde_json::to_vec(value) {
        Ok(json) => Ok(Answer::Json(json)),
        // None of our types has a map with other keys than strings, which is all that could fail.
        Err(error) => Err(RequestError::Machine(error.to_string())),
    }
}
