"""The words that the reading task writes: common English words of three to six letters, each once."""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    sorted(
        set(
            """
            acorn amber angle ankle apple apron arch arrow atlas attic axle bacon badge bag baker bamboo banana barn
            basil basket bath beach bean bear beard bed bee beet bell belt bench berry bike bird blade block
            boat bone book boot bottle bow bowl box brain branch bread brick bridge broom brush bubble bucket bus
            bush butter button cabin cable cactus cake camel camera camp candle cane canoe canvas cap cape car card
            carpet carrot cart castle cat cave cellar chain chair chalk cheese cherry chest chin church circus city
            clam claw clay cliff clock cloud clover coach coal coast coat cobra coffee coin comb copper coral cork
            corn cotton couch cow crab crane crater cream crib crow crown cup curb dairy daisy dam dance dawn
            deck deer desert desk diary dirt dish ditch dock dog doll donkey door dove dragon drain drawer dress
            drill drum duck dune dust eagle ear earth easel echo eel egg elbow elk elm engine face falcon fan farm
            feast fence fern ferry field fig film fin finger fire fish flag flame flask flint floor flour flute fly
            foam fog foot forest fork fossil fox frame frog frost fruit fur garage garden garlic gate gem ghost
            giant ginger girl glass globe glove glue goat gold goose gown grain grape grass gravel grove guitar gulf
            gull gum hail hair ham hammer hand harbor harp hat hawk hay head heart hedge heel helmet hen herb hill
            hinge hive hole honey hood hoof hook horn horse hose hotel house ice igloo ink iron island ivory ivy
            jacket jaguar jam jar jaw jelly jewel judge jug juice jungle kettle key king kite kitten knee knife
            knight knot ladder lake lamb lamp lance lark lava lawn leaf leg lemon lens letter lid lily lime linen
            lion lip lizard lobby lock log lotus magnet mango map maple marble market mask mast meadow melon menu
            metal milk mill mint mirror mole monkey moon moose moss moth motor mouse mouth mud mug museum nail
            napkin neck needle nest net night noon nose nurse nut oak oar oasis ocean olive onion opal orange orbit
            orchid otter oven owl oyster page paint palace palm panda paper parade parrot path paw pea peach pear
            pearl pebble pen pencil pepper petal piano pie pier pig pillow pilot pine pipe pirate planet plate plow
            plum pocket poem pond pony poppy potato powder prince prism pump puppy purse puzzle queen quilt quiz
            rabbit radar radio raft rail rain raisin ranch raven reef ribbon rice rider ring river road robin robot
            rocket roof room root rope rose ruby rug ruler saddle sail salad salmon salt sand sauce saw scale scarf
            school screw sea seal seed shark sheep shelf shell ship shirt shoe shop shore shovel silk silver sink
            skate ski skirt skull sky sled sleeve slope smoke snail snake snow soap sock sofa soil soup spade spider
            spice spoon spring spruce stable stairs stamp statue steam steel stem stone stool storm stove straw
            street string studio sugar suit summer sun swamp swan sword syrup table tail tank tape tea teapot temple
            tent thorn throne thumb ticket tide tiger tile timber tin toast toe tomato tongue tooth torch towel tower
            town toy track train tray tree trout truck trunk tube tulip tunnel turkey turtle twig valley valve van
            vase vest vine violin wagon walnut wand wasp water wave wax whale wheat wheel wheat whip willow wind
            window wing winter wolf wood wool worm wrist yak yard yarn zebra zinc zipper
            """.split()
        )
    )
)
