//! The start of a container: whether it began is known, whatever becomes of the engine's answer.

use super::container::{AWAY, LOOK, Run};
use super::outcome::Problem;
use crate::containers;
use crate::native::fault::Fault;
use crate::permission;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerStateStatusEnum;
use bollard::query_parameters::{RemoveContainerOptions, StartContainerOptions};
use std::time::Instant;

impl Run<'_> {
    /// Starts the container, after a last look at the claim.
    pub(super) async fn start(&self, docker: &Docker, id: &str) -> Result<(), Problem> {
        processes::pause::point("docker-start");
        let begins = permission::begins(self.facts, self.stop).await;
        begins.map_err(|why| Problem::airflow(why.cause).by(Fault::Worker))?;
        match docker.start_container(id, None::<StartContainerOptions>).await {
            Ok(()) => Ok(()),
            Err(error @ Error::DockerResponseServerError { .. }) => Err(error.into()),
            // It was asked, and nobody heard what it did.
            Err(error) => self.was_started(docker, id, error).await,
        }
    }

    /// Asks whether a container was started by a call that broke off.
    async fn was_started(&self, docker: &Docker, id: &str, error: Error) -> Result<(), Problem> {
        let since = Instant::now();
        while since.elapsed() < AWAY {
            match docker.inspect_container(id, None).await {
                Ok(found) => {
                    let status = found.state.and_then(|state| state.status);
                    if status != Some(ContainerStateStatusEnum::CREATED) {
                        return Ok(());
                    }
                    // Nothing may start it any more once we say that it never began. Without force, one that the engine is
                    // just starting is not removed.
                    let removed = docker.remove_container(id, None::<RemoveContainerOptions>).await;
                    if removed.is_ok() {
                        return Err(error.into());
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Err(Error::DockerResponseServerError { status_code: 404, .. }) => return Err(error.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
        containers::kill_try(&self.shared.engines, self.facts).await;
        Err(Problem::from(error).after_the_start())
    }
}
