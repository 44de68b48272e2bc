mod guest;
mod handshake;
mod hostile;
mod lifecycle;
mod packet;
mod socket;
mod streams;
