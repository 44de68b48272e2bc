mod rig;
mod rx;
mod tx;
