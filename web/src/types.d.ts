// What the parts of the component hand each other. Only types: nothing of this file is in the bundle.

/** Table entry of an array in a block, as report/view_data.py writes it. */
export interface Packed {
  type: string;
  shape: number[];
  at: number;
  low?: number | null;
  high?: number | null;
}

export interface Block {
  arrays: Record<string, Packed>;
  texts: number;
  size: number;
  data: string;
}

/** A view as JSON. */
export interface ViewJson {
  format: string;
  version: number;
  kind: string;
  title: string;
  caption?: string;
  model?: string;
  notes?: string[];
  meta?: Record<string, any>;
  block: Block;
  pages?: Block[];
}

/** An unpacked array: numbers as they are (NaN where there is none), texts and flags through `at`. */
export interface Values {
  shape: number[];
  type: "number" | "text" | "flag";
  length: number;
  numbers: ArrayLike<number>;
  at(i: number): any;
}

export type Arrays = Map<string, Values>;

export interface Unpacked {
  kind: string;
  title: string;
  notes: string[];
  meta: Record<string, any>;
  arrays: Arrays;
  /** Number of pages, and a page's arrays, unpacked when first asked for. */
  pages: number;
  page(i: number): Promise<Arrays>;
}

/** A row of a table: column name to value. */
export type Row = Record<string, any>;

/** A table to copy or to read: column names, and rows of plain values. */
export interface Sheet {
  name: string;
  columns: string[];
  rows: any[][];
}

/** A drawing that knows nothing of screen or file: shapes with colour names, in pixels. */
export interface Scene {
  name: string;
  label: string;
  width: number;
  height: number;
  items: Shape[];
  /** Places that pointer and arrow keys stop at. */
  hits: Hit[];
  /** Lines whose names a drawing in a file says, and what it says below. */
  series?: Series[];
  note?: string;
  notes?: string[];
}

export interface Shape {
  tag: "rect" | "path" | "circle" | "text";
  x?: number;
  y?: number;
  w?: number;
  h?: number;
  r?: number;
  d?: string;
  text?: string;
  anchor?: "start" | "middle" | "end";
  size?: number;
  bold?: boolean;
  fill?: string;
  stroke?: string;
  wide?: number;
  dash?: string;
  alpha?: number;
  turn?: number;
}

export interface Hit {
  x: number;
  y: number;
  label: string;
  key?: any;
}

export interface Series {
  name: string;
  points: { x: number; y: number; low?: number; high?: number; label?: string; key?: any }[];
  colour?: number;
  dashed?: boolean;
}

export type State = Record<string, any>;

/** What a view's builder is given. */
export interface Context {
  view: Unpacked;
  body: HTMLElement;
  state: State;
  options: Options;
  /** Changes the state, draws anew, tells the host. */
  set(patch: State): void;
  /** Says a text to a screen reader. */
  announce(text: string): void;
  dark(): boolean;
}

/** What a view's builder gives back. */
export interface Part {
  draw(): void;
  sheets(): Sheet[];
  scenes(): Scene[];
  push?(event: any): void;
  destroy?(): void;
}

export interface Options {
  /** What was kept from an earlier time: only what differs from the defaults. */
  state?: State;
  onState?(state: State): void;
  /** Called with what a reader asks for: {type: "stop"}, {type: "fork", position, token}, … */
  onAction?(action: Record<string, any>): void;
  theme?: "auto" | "light" | "dark";
  /** Decoders offered when a live view is forked. */
  decoders?: string[];
}

export interface Handle {
  ready: Promise<void>;
  state(): State;
  setState(state: State): void;
  push(event: any): void;
  sheets(): Sheet[];
  csv(i?: number): string;
  svg(i?: number, print?: boolean): string;
  json(): string;
  destroy(): void;
}

/** A figure over a table, as report/view_figures.py declares it. `$key` stands for the value of a switch. */
export interface Figure {
  type: "line" | "bar" | "matrix";
  name: string;
  title: string;
  note?: string;
  table: string;
  where?: string[];
  only?: Row;
  x: string;
  y: string;
  by?: string;
  lines?: [string, string][];
  low?: string;
  high?: string;
  label?: string;
  xLabel?: string;
  yLabel?: string;
  range?: [number, number];
  domain?: [number, number];
  height?: number;
  refs?: [number, string, string[]?][];
  flat?: boolean;
  diagonal?: string;
  log?: boolean;
  marks?: [number, number, string][];
  without?: string[];
  pick?: string;
  signed?: boolean;
  percent?: boolean;
}
