//! What a runner tells while it works: JSON lines on its standard output. What is interrupted has told what it finished.

use serde::{Deserialize, Serialize};

use crate::report::Environment;
use crate::subject::Backend;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// First of all: where it measures, and how many steps there will be.
    Begun {
        environment: Box<Environment>,
        steps: u64,
    },
    /// What it does now.
    Step {
        experiment: String,
        backend: Backend,
    },
    /// The figures of one run, in the order of the experiment's.
    Measured {
        experiment: String,
        backend: Backend,
        values: Vec<f64>,
    },
    /// What its last run found besides figures.
    Noted {
        experiment: String,
        backend: Backend,
        note: String,
    },
    /// An experiment has no figures of that backend, or no more of them.
    Failed {
        experiment: String,
        backend: Backend,
        why: String,
    },
    /// Last of all; without it, the runner was interrupted.
    Ended,
}
