mod hostile;
mod lifecycle;
mod limits;
mod offloads;
mod rig;
mod rx;
mod tx;
