use super::*;
use crate::fakes::Random;
use crate::legacy::tests::Line;

fn port() -> (Uart, Arc<Line>) {
    let line = Arc::new(Line::default());
    (Uart::new(line.clone()).unwrap(), line)
}

fn get(uart: &Uart, register: u64) -> u8 {
    let mut data = [0];
    uart.read(register, &mut data);
    data[0]
}

fn put(uart: &Uart, register: u64, value: u8) {
    uart.write(register, &[value]);
}

fn output(uart: &Uart) -> Vec<u8> {
    let mut buffer = vec![0; OUTPUT_CAPACITY + 1];
    let count = uart.peek_output(&mut buffer);
    buffer.truncate(count);
    buffer
}

#[test]
fn what_the_guest_transmits_waits_in_order_until_it_is_consumed() {
    let (uart, line) = port();
    for byte in b"hello" {
        put(&uart, RBR_THR, *byte);
        assert_eq!(get(&uart, LSR) & LSR_EMPTY, LSR_EMPTY);
    }
    assert_eq!(output(&uart), b"hello");
    uart.consume_output(2);
    assert_eq!(output(&uart), b"llo");
    uart.consume_output(100);
    assert_eq!(output(&uart), b"");
    assert_eq!(line.edges(), 0, "no interrupt is enabled");
}

#[test]
fn the_worker_is_woken_once_for_a_run_of_output() {
    let (uart, _) = port();
    for _ in 0..100 {
        put(&uart, RBR_THR, b'x');
    }
    assert_eq!(uart.wake_event().read().unwrap(), 1);
    uart.consume_output(100);
    put(&uart, RBR_THR, b'x');
    assert_eq!(uart.wake_event().read().unwrap(), 1);
}

#[test]
fn output_that_nobody_takes_is_bounded_and_the_rest_counted() {
    let (uart, _) = port();
    for _ in 0..OUTPUT_CAPACITY + 1000 {
        put(&uart, RBR_THR, b'x');
    }
    assert_eq!(output(&uart).len(), OUTPUT_CAPACITY);
    assert_eq!(uart.dropped_output(), 1000);
    assert_eq!(
        get(&uart, LSR) & LSR_EMPTY,
        LSR_EMPTY,
        "the guest never waits"
    );
}

#[test]
fn a_driver_that_fills_the_fifo_from_its_handler_gets_one_interrupt_for_16_bytes() {
    let (uart, line) = port();
    put(&uart, IIR_FCR, FCR_ENABLE);
    put(&uart, IER, IER_TRANSMITTER_EMPTY);
    for round in 1..=5 {
        assert_eq!(line.edges(), round);
        assert_eq!(
            get(&uart, IIR_FCR),
            IIR_FIFO_ENABLED | IIR_TRANSMITTER_EMPTY
        );
        assert_eq!(get(&uart, IIR_FCR), IIR_FIFO_ENABLED | IIR_NONE);
        for _ in 0..16 {
            put(&uart, RBR_THR, b'x');
        }
    }
    put(&uart, IER, 0);
    assert_eq!(get(&uart, IIR_FCR), IIR_FIFO_ENABLED | IIR_NONE);
    // Linux's test for chips that do not raise it again.
    for _ in 0..2 {
        put(&uart, IER, IER_TRANSMITTER_EMPTY);
        assert_eq!(get(&uart, IIR_FCR) & 0x0F, IIR_TRANSMITTER_EMPTY);
        put(&uart, IER, 0);
    }
}

#[test]
fn input_raises_the_interrupt_and_is_read_in_order() {
    let (uart, line) = port();
    put(&uart, IER, IER_RECEIVED);
    assert_eq!(uart.feed(b"ab"), 2);
    assert_eq!(line.edges(), 1);
    assert_eq!(get(&uart, IIR_FCR), IIR_RECEIVED);
    assert_eq!(get(&uart, LSR) & LSR_DATA_READY, 1);
    assert_eq!([get(&uart, RBR_THR), get(&uart, RBR_THR)], *b"ab");
    assert_eq!(get(&uart, LSR) & LSR_DATA_READY, 0);
    assert_eq!(get(&uart, IIR_FCR), IIR_NONE);
    assert_eq!(get(&uart, RBR_THR), 0);
    uart.feed(b"c");
    assert_eq!(line.edges(), 2);
}

#[test]
fn input_that_came_before_the_interrupt_was_enabled_raises_it_then() {
    let (uart, line) = port();
    uart.feed(b"a");
    assert_eq!(line.edges(), 0);
    put(&uart, IER, IER_RECEIVED);
    assert_eq!(line.edges(), 1);
}

#[test]
fn input_is_bounded_and_the_worker_hears_when_there_is_room_again() {
    let (uart, _) = port();
    assert_eq!(uart.input_room(), INPUT_CAPACITY);
    assert_eq!(uart.feed(&[7; INPUT_CAPACITY + 10]), INPUT_CAPACITY);
    assert_eq!(uart.feed(&[7]), 0);
    assert_eq!(uart.input_room(), 0);
    assert!(uart.wake_event().read().is_err());
    for _ in 0..INPUT_CAPACITY {
        get(&uart, RBR_THR);
    }
    assert_eq!(uart.wake_event().read().unwrap(), 1);
    assert_eq!(uart.input_room(), INPUT_CAPACITY);
    uart.feed(&[7; INPUT_CAPACITY]);
    assert_eq!(uart.input_room(), 0);
    put(&uart, IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    assert_eq!(uart.wake_event().read().unwrap(), 1);
}

#[test]
fn loop_back_mode_returns_data_and_modem_control_as_linux_probes_it() {
    let (uart, line) = port();
    put(&uart, IER, IER_RECEIVED);
    put(&uart, MCR, MCR_LOOP | 0x0A);
    assert_eq!(get(&uart, MSR) & 0xF0, 0x90);
    put(&uart, MCR, MCR_LOOP | 0x05);
    assert_eq!(get(&uart, MSR) & 0xF0, 0x60);
    put(&uart, RBR_THR, b'q');
    assert_eq!(line.edges(), 1);
    assert_eq!(get(&uart, RBR_THR), b'q');
    assert_eq!(output(&uart), b"", "nothing leaves the port");
    put(&uart, MCR, 0);
    assert_eq!(get(&uart, MSR), MSR_CONNECTED);
}

#[test]
fn loop_back_overrun_is_a_line_status_interrupt_that_reading_clears() {
    let (uart, _) = port();
    put(&uart, IER, IER_LINE_STATUS);
    put(&uart, MCR, MCR_LOOP);
    for _ in 0..=INPUT_CAPACITY {
        put(&uart, RBR_THR, 1);
    }
    assert_eq!(get(&uart, IIR_FCR), IIR_LINE_STATUS);
    assert_eq!(get(&uart, LSR) & LSR_OVERRUN, LSR_OVERRUN);
    assert_eq!(get(&uart, LSR) & LSR_OVERRUN, 0);
    assert_eq!(get(&uart, IIR_FCR), IIR_NONE);
}

#[test]
fn scratch_divisor_and_interrupt_enable_behave_as_a_16550a_under_probe() {
    let (uart, _) = port();
    put(&uart, SCR, 0xA5);
    assert_eq!(get(&uart, SCR), 0xA5);
    put(&uart, IER, 0xFF);
    assert_eq!(get(&uart, IER), 0x0F);
    put(&uart, IER, 0);
    put(&uart, LCR, LCR_DLAB | 3);
    put(&uart, RBR_THR, 0x0C);
    put(&uart, IER, 0x01);
    assert_eq!([get(&uart, RBR_THR), get(&uart, IER)], [0x0C, 0x01]);
    put(&uart, LCR, 3);
    assert_eq!(get(&uart, IER), 0);
    assert_eq!(output(&uart), b"");
    put(&uart, IIR_FCR, FCR_ENABLE);
    assert_eq!(get(&uart, IIR_FCR) >> 6, 0b11, "a 16550A with FIFOs");
    put(&uart, IIR_FCR, 0);
    assert_eq!(get(&uart, IIR_FCR) >> 6, 0);
}

#[test]
fn the_state_survives_a_round_trip_and_interrupts_are_raised_again() {
    let (uart, _) = port();
    put(&uart, LCR, LCR_DLAB);
    put(&uart, RBR_THR, 1);
    put(&uart, LCR, 3);
    put(&uart, IIR_FCR, FCR_ENABLE);
    put(&uart, SCR, 9);
    put(&uart, IER, IER_RECEIVED | IER_TRANSMITTER_EMPTY);
    put(&uart, RBR_THR, b'o');
    uart.feed(b"in");
    let state = uart.state();

    let line = Arc::new(Line::default());
    let restored = Uart::from_state(line.clone(), state.clone()).unwrap();
    assert_eq!(restored.state(), state);
    assert_eq!(line.edges(), 0);
    restored.resume();
    assert_eq!(line.edges(), 1);
    assert_eq!(restored.wake_event().read().unwrap(), 1);
    assert_eq!([get(&restored, RBR_THR), get(&restored, RBR_THR)], *b"in");
    assert_eq!(output(&restored), b"o");
}

#[test]
fn a_reset_clears_registers_and_input_but_not_output() {
    let (uart, line) = port();
    put(&uart, LCR, LCR_DLAB | 3);
    put(&uart, RBR_THR, 1);
    put(&uart, LCR, 3);
    put(&uart, IER, 0x0F);
    put(&uart, MCR, 0x0B);
    put(&uart, RBR_THR, b'o');
    uart.feed(b"in");
    uart.reset();
    let expected = UartState {
        output: b"o".to_vec(),
        ..UartState::default()
    };
    assert_eq!(uart.state(), expected);
    let edges = line.edges();
    uart.feed(b"x");
    assert_eq!(line.edges(), edges);
}

#[test]
fn resuming_in_place_raises_pending_interrupts_again() {
    let (uart, line) = port();
    put(&uart, IER, IER_RECEIVED);
    uart.resume();
    assert_eq!(line.edges(), 0, "nothing is pending");
    uart.feed(b"a");
    uart.resume();
    assert_eq!(line.edges(), 2);
}

#[test]
fn a_state_longer_than_the_buffers_is_cut() {
    let state = UartState {
        ier: 0xFF,
        input: vec![1; INPUT_CAPACITY + 1],
        output: vec![1; OUTPUT_CAPACITY + 1],
        ..UartState::default()
    };
    let restored = Uart::from_state(Arc::new(Line::default()), state)
        .unwrap()
        .state();
    assert_eq!(restored.ier, 0x0F);
    assert_eq!(restored.input.len(), INPUT_CAPACITY);
    assert_eq!(restored.output.len(), OUTPUT_CAPACITY);
}

#[test]
fn accesses_of_every_width_at_every_offset_are_harmless() {
    let (uart, _) = port();
    let mut random = Random::new(3);
    for _ in 0..50_000 {
        let size = 1 + usize::try_from(random.below(8)).unwrap();
        let mut data = random.next().to_le_bytes()[..size].to_vec();
        let offset = random.below(10);
        uart.write(offset, &data);
        uart.read(offset, &mut data);
        if random.below(100) == 0 {
            uart.feed(&data);
        }
    }
    assert!(output(&uart).len() <= OUTPUT_CAPACITY);
    assert!(uart.state().input.len() <= INPUT_CAPACITY);
}
