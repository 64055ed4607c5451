"""Units by name and symbol, in English and Chinese, with exact factors to a base unit of their dimension.

Symbols are case-sensitive (mW, MW). GB are decimal and GiB binary. The ambiguous "pound" and ¥ are left out.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

PLAIN_NUMBER = "number"
"""The dimension of numbers without a unit and of percent: 50 % is 1/2."""

# Dimension: factor to its base unit, then the names of the unit; the first name is its name here.
_UNIT_TABLE = """
number: 1e-2 % percent percents 百分比; 1e-3 ‰ permille
points: 1 pp 个百分点 百分点
length: 1 m metre metres meter meters 米 公尺; 1000 km kilometre kilometres kilometer kilometers 公里 千米;
  1e-1 dm decimetre decimetres decimeter decimeters 分米;
  1e-2 cm centimetre centimetres centimeter centimeters 厘米 公分;
  1e-3 mm millimetre millimetres millimeter millimeters 毫米;
  1e-6 µm micrometre micrometres micrometer micrometers micron microns 微米;
  1e-9 nm nanometre nanometres nanometer nanometers 纳米 奈米; 1609.344 mi mile miles 英里; 0.9144 yd yard yards;
  0.3048 ft foot feet 英尺 呎; 0.0254 inch inches 英寸 吋
length^2: 10000 ha hectare hectares 公顷
length^3: 1e-3 l L litre litres liter liters 升 公升; 1e-4 dl decilitre decilitres deciliter deciliters;
  1e-5 cl centilitre centilitres centiliter centiliters; 1e-6 ml mL millilitre millilitres milliliter milliliters 毫升
mass: 1 kg kilogram kilograms kilo kilos 公斤 千克; 1e-3 g gram grams 克 公克; 1e-6 mg milligram milligrams 毫克;
  1e-9 µg microgram micrograms 微克; 1000 t tonne tonnes 吨 公吨; 1/2 斤; 0.45359237 lb lbs;
  0.028349523125 oz ounce ounces
time: 1 s second seconds sec secs 秒 秒钟; 1e-3 ms millisecond milliseconds 毫秒;
  1e-6 µs microsecond microseconds 微秒; 1e-9 ns nanosecond nanoseconds 纳秒; 60 min minute minutes mins 分钟;
  3600 h hour hours hr hrs 小时 个小时 钟头 个钟头; 86400 day days 天; 604800 week weeks 周 星期 个星期 礼拜 个礼拜
months: 1 month months 个月; 12 year years yr yrs 年 岁 周岁; 120 decade decades; 1200 century centuries 世纪 个世纪
data: 1 byte bytes B 字节; 1e3 kB KB kilobyte kilobytes; 1e6 MB megabyte megabytes; 1e9 GB gigabyte gigabytes;
  1e12 TB terabyte terabytes; 1024 KiB kibibyte kibibytes; 1048576 MiB mebibyte mebibytes;
  1073741824 GiB gibibyte gibibytes; 1/8 bit bits 比特; 125000 Mbit megabit megabits; 125000000 Gbit gigabit gigabits
data/time: 125000 Mbps; 125000000 Gbps
rate: 1 Hz hertz 赫兹; 1e3 kHz kilohertz; 1e6 MHz megahertz 兆赫; 1e9 GHz gigahertz
power: 1 W watt watts 瓦 瓦特; 1e-3 mW milliwatt milliwatts; 1e3 kW kilowatt kilowatts 千瓦;
  1e6 MW megawatt megawatts 兆瓦; 1e9 GW gigawatt gigawatts
energy: 1 J joule joules 焦耳; 1e3 kJ kilojoule kilojoules 千焦; 1e6 MJ megajoule megajoules; 3600 Wh;
  3600000 kWh 千瓦时 度电; 4184 kcal 千卡 大卡
force: 1 N newton newtons 牛顿; 1e3 kN
pressure: 1 Pa pascal pascals 帕斯卡; 1e2 hPa; 1e3 kPa 千帕; 1e6 MPa; 1e5 bar; 101325 atm 标准大气压
voltage: 1 V volt volts 伏 伏特; 1e-3 mV millivolt millivolts; 1e3 kV kilovolt kilovolts 千伏
current: 1 A amp amps ampere amperes 安培; 1e-3 mA 毫安
resistance: 1 Ω ohm ohms 欧姆; 1e3 kΩ
amount: 1 mol moles 摩尔
dollar: 1 $ dollar dollars usd US$ 美元 美金; 1e-2 ¢ cent cents 美分
euro: 1 € euro euros eur 欧元
pound: 1 £ gbp 英镑
yuan: 1 元 yuan rmb cny 人民币 元人民币 块钱 圆
yen: 1 yen jpy 日元 日圆
rupee: 1 ₹ rupee rupees inr
kelvin: 1 K kelvin kelvins 开尔文; 1 °C celsius 摄氏度; 5/9 °F fahrenheit 华氏度
length/time: 5/18 km/h kph kmh 时速公里; 0.44704 mph
"""
_ZERO_AT = {"°C": Fraction(27315, 100), "°F": Fraction(45967, 100) * Fraction(5, 9)}  # in kelvin
_ANY_CASE = {"kB", "MB", "GB", "TB", "°C", "°F", "kWh"}
"""Names with capitals that are also known in any case, like lowercase names; single letters are not: 5G is no mass."""


@dataclass(frozen=True)
class Unit:
    """A unit's name and dimension, and `base = value * factor + offset` in the dimension's base unit."""

    name: str
    dimension: str
    factor: Fraction
    offset: Fraction = Fraction(0)


@lru_cache(4096)
def find_unit(written: str) -> Unit | None:
    """Return the unit of a name or symbol, also of a square, cube or quotient (m^2, km/h); None if unknown."""
    if unit := _UNITS.get(written) or _UNITS_ANY_CASE.get(written.casefold()):
        return unit
    if "/" in written:
        over, under = (find_unit(part) for part in written.split("/", 1))
        if over is None or under is None or over.offset or under.offset:
            return None
        dimension = f"{over.dimension}/{under.dimension}"
        return Unit(f"{over.name}/{under.name}", dimension, over.factor / under.factor)
    if power := re.fullmatch(r"(\D+?)\^?([23])", written):
        base, exponent = find_unit(power[1]), int(power[2])
        if base is not None and not base.offset:
            return Unit(f"{base.name}^{exponent}", f"{base.dimension}^{exponent}", base.factor**exponent)
    return None


def base_unit(dimension: str) -> str:
    """Return the name of a dimension's base unit; "" for plain numbers, dates and times of day."""
    if name := _BASE_UNITS.get(dimension):
        return name
    if "/" in dimension:
        return "/".join(map(base_unit, dimension.split("/", 1)))
    base, power, exponent = dimension.partition("^")
    return base_unit(base) + power + exponent if power else ""


def _parse_units() -> dict[str, Unit]:
    units = {}
    for line in _UNIT_TABLE.replace(";\n", ";").strip().splitlines():
        dimension, _, listed = line.partition(":")
        for row in listed.split(";"):
            factor, *names = row.split()
            unit = Unit(names[0], dimension, Fraction(factor), _ZERO_AT.get(names[0], Fraction(0)))
            units.update(dict.fromkeys(names, unit))
    return units


_UNITS = _parse_units()
_UNITS_ANY_CASE = {
    name.casefold(): unit for name, unit in _UNITS.items() if len(name) > 1 and (name.islower() or name in _ANY_CASE)
}
_BASE_UNITS = {unit.dimension: unit.name for unit in _UNITS.values() if unit.factor == 1 and not unit.offset}
HAN_UNITS = "|".join(sorted((name for name in _UNITS if re.match(r"[\u4e00-\u9fff]", name)), key=len, reverse=True))
